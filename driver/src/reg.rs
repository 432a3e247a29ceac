//! A 32-bit register with its access in its type: a read-only one cannot be written.

use crate::nic::NicError;
use flowlift_bus::BusError;
use std::marker::PhantomData;

/// Read-only.
pub(crate) enum Ro {}
/// Read and write.
pub(crate) enum Rw {}
/// Write-only.
pub(crate) enum Wo {}
/// Access that may read.
pub(crate) trait Readable {}
impl Readable for Ro {}
impl Readable for Rw {}
/// Access that may write.
pub(crate) trait Writable {}
impl Writable for Rw {}
impl Writable for Wo {}

/// A register. Blocks of a repeated one are `stride` bytes apart.
pub(crate) struct Reg<A> {
    pub(crate) offset: u64,
    stride: u64,
    access: PhantomData<A>,
}

impl<A> Clone for Reg<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Reg<A> {}

impl<A> Reg<A> {
    /// A register at `offset`, or the first of several that are `stride` bytes apart.
    pub(crate) const fn at(offset: u64, stride: u64) -> Self {
        Self { offset, stride, access: PhantomData }
    }
    /// The register of block `i` (queue, ring or port number).
    pub(crate) const fn of(self, i: u32) -> Self {
        Self::at(self.offset + self.stride * i as u64, 0)
    }
    /// The upper half of a 64-bit pair: it follows the lower one.
    pub(crate) const fn hi(self) -> Self {
        Self::at(self.offset + 4, self.stride)
    }
}

/// The result of an access to `device`, in which a function that is gone is a NIC that is gone.
pub(crate) fn noticed<T>(device: &str, result: Result<T, BusError>) -> Result<T, NicError> {
    match result {
        Err(BusError::Gone(_)) => Err(NicError::Gone(device.into())),
        other => Ok(other?),
    }
}
