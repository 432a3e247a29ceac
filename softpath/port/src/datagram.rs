//! A wire of Unix datagrams: one datagram is one frame. QEMU's `-netdev dgram` with Unix addresses speaks the same.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use crate::{Frame, FrameSink, FrameSource, MAX_FRAME, PortError, unix};

/// One end of a wire of Unix datagrams.
///
/// Frames go to the peer that was named, or else to whoever sent the last one. The socket's file is removed when the port
/// is dropped.
#[derive(Debug)]
pub struct DatagramPort {
    socket: UnixDatagram,
    path: PathBuf,
    peer: Option<SocketAddr>,
    /// The peer was named: senders do not change it.
    fixed: bool,
    /// The frame lent last.
    lent: Vec<u8>,
}

impl DatagramPort {
    /// Binds a socket at `path`, where a socket that nobody holds any more is replaced.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` where somebody is listening.
    pub fn bind(path: impl Into<PathBuf>, peer: Option<&Path>) -> Result<DatagramPort, PortError> {
        let path = path.into();
        let socket = unix::bind(&path, UnixDatagram::bind)?;
        socket.set_nonblocking(true)?;
        let peer = peer.map(SocketAddr::from_pathname).transpose()?;
        let fixed = peer.is_some();
        Ok(DatagramPort { socket, path, peer, fixed, lent: vec![0; MAX_FRAME] })
    }
}

impl Drop for DatagramPort {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsFd for DatagramPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl FrameSource for DatagramPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        match self.socket.recv_from(&mut self.lent) {
            Ok((len, from)) => {
                if !self.fixed && !from.is_unnamed() {
                    self.peer = Some(from);
                }
                Ok(Some(Frame::new(&self.lent[..len])))
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl FrameSink for DatagramPort {
    /// # Errors
    /// [`PortError::Full`] while the peer's queue is full; `NotConnected` while there is no peer.
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        frame.finish(|whole| self.send_whole(whole))
    }
}

impl DatagramPort {
    fn send_whole(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        let len = frame.data.len();
        if len > MAX_FRAME {
            return Err(PortError::TooLong { len });
        }
        let peer = self.peer.as_ref().ok_or_else(|| std::io::Error::from(ErrorKind::NotConnected))?;
        match self.socket.send_to_addr(frame.data, peer) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Err(PortError::Full),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_to_the_named_peer_and_back_to_the_sender() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut one = DatagramPort::bind(&a, None).unwrap();
        let mut two = DatagramPort::bind(&b, Some(&a)).unwrap();
        assert!(one.receive().unwrap().is_none());
        assert!(matches!(one.send(Frame::new(b"nobody")), Err(PortError::Io(_))), "no peer is known yet");
        two.send(Frame::new(b"there")).unwrap();
        assert_eq!(one.receive().unwrap().map(|f| f.data.to_vec()), Some(b"there".to_vec()));
        one.send(Frame::new(&[7; 65_600])).unwrap();
        assert_eq!(two.receive().unwrap().map(|f| f.data.len()), Some(65_600));
    }

    #[test]
    fn a_full_peer_is_full_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut one = DatagramPort::bind(&a, Some(&b)).unwrap();
        let mut two = DatagramPort::bind(&b, None).unwrap();
        let sent = (0..1_000_000).take_while(|_| one.send(Frame::new(&[0; 60])).is_ok()).count();
        assert!(matches!(one.send(Frame::new(b"x")), Err(PortError::Full)), "{sent} frames were taken");
        let mut got = 0;
        while two.receive().unwrap().is_some() {
            got += 1;
        }
        assert_eq!(got, sent);
        assert!(one.send(Frame::new(b"x")).is_ok());
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixDatagram::bind(&path).unwrap());
        assert!(path.exists());
        let port = DatagramPort::bind(&path, None).unwrap();
        assert!(
            matches!(DatagramPort::bind(&path, None), Err(PortError::Io(e)) if e.kind() == ErrorKind::AddrInUse)
        );
        drop(port);
        assert!(!path.exists());
    }
}
