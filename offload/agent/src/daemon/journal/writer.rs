//! The journal's thread.

use super::Ask;
use super::log::Log;
use super::queue::{Found, Order, Position, Queue};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Bytes that are gathered for one write.
const GATHER: usize = 256 << 10;
/// Time between two writes at least: while flows come and go without end, the thread is woken once for all of that time.
const INTERVAL: Duration = Duration::from_millis(2);
/// Time until a journal that failed is begun anew; doubled each time that it fails again, up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// See the module's head.
pub(super) struct Writer {
    /// `None` while the disk does not take one.
    log: Option<Log>,
    path: PathBuf,
    owner: String,
    queue: Arc<Queue>,
    ask: Ask,
    /// Which beginning is to be told everything; the first one is told without being asked.
    beginning: u64,
    pause: Duration,
    retry: Option<Instant>,
}

impl Writer {
    pub(super) fn new(path: &Path, owner: &str, queue: Arc<Queue>, ask: Ask) -> Self {
        let created =
            Log::create(path, owner).map_err(|error| queue.fail(format!("{}: {error}", path.display())));
        let (path, owner) = (path.to_path_buf(), owner.to_owned());
        Self { log: created.ok(), path, owner, queue, ask, beginning: 0, pause: RETRY, retry: None }
    }

    /// Writes until there will be no more.
    pub(super) fn run(mut self) {
        let mut last: Option<Instant> = None;
        loop {
            let Found { orders, stale, closed } = self.queue.take(self.retry);
            if stale {
                if closed {
                    return self.remove();
                }
                self.begin_anew();
                continue;
            }
            if orders.is_empty() && closed {
                return;
            }
            if let Err(error) = self.write(orders) {
                self.queue.fail(format!("{}: {error}", self.path.display()));
                continue;
            }
            if let Some(rest) = last.and_then(|last| INTERVAL.checked_sub(last.elapsed()))
                && !closed
            {
                sleep(rest);
            }
            last = Some(Instant::now());
        }
    }

    /// What waited is one write, or several large ones.
    fn write(&mut self, orders: Vec<Order>) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        for order in orders {
            match order {
                Order::Write(record) => log.take(record),
                Order::Publish => {
                    log.publish()?;
                    self.queue.is_whole();
                }
                // Of a beginning that was given up.
                Order::Told(beginning, _) if beginning != self.beginning => {}
                Order::Told(_, Some(next)) => (self.ask)(next),
                Order::Told(_, None) => {
                    log.publish()?;
                    self.pause = RETRY;
                    self.queue.is_whole();
                }
            }
            if log.pending() >= GATHER {
                log.write()?;
            }
        }
        log.write()
    }

    /// Takes the file away, now, and begins a new one when it is time.
    fn begin_anew(&mut self) {
        let now = Instant::now();
        let Some(time) = self.retry else {
            self.remove();
            self.retry = Some(now + self.pause);
            return;
        };
        if now < time {
            return;
        }
        self.pause = (2 * self.pause).min(RETRY_MAX);
        match Log::create(&self.path, &self.owner) {
            Ok(log) => {
                self.log = Some(log);
                self.retry = None;
                self.beginning = self.queue.begin();
                (self.ask)(Position::start(self.beginning));
            }
            Err(_) => self.retry = Some(now + self.pause),
        }
    }

    /// A file that does not go on would tell the next daemon of flows that are no more.
    fn remove(&mut self) {
        self.log = None;
        for path in [&self.path, &self.path.with_extension("new")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "flows that are no more stay there");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}
