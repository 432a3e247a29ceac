//! The C library's own functions, behind those of this library.

use libc::{c_int, c_uint, c_void, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use std::ffi::CStr;
use std::sync::OnceLock;

/// The functions that this library stands before.
pub(crate) struct Real {
    pub(crate) socket: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int,
    pub(crate) close: unsafe extern "C" fn(c_int) -> c_int,
    pub(crate) close_range: unsafe extern "C" fn(c_uint, c_uint, c_int) -> c_int,
    pub(crate) connect: unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int,
    pub(crate) send: unsafe extern "C" fn(c_int, *const c_void, size_t, c_int) -> ssize_t,
    pub(crate) sendmsg: unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t,
    pub(crate) recv: unsafe extern "C" fn(c_int, *mut c_void, size_t, c_int) -> ssize_t,
    pub(crate) recvmsg: unsafe extern "C" fn(c_int, *mut msghdr, c_int) -> ssize_t,
    pub(crate) dup: unsafe extern "C" fn(c_int) -> c_int,
    pub(crate) dup2: unsafe extern "C" fn(c_int, c_int) -> c_int,
    pub(crate) dup3: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int,
    pub(crate) fcntl: unsafe extern "C" fn(c_int, c_int, ...) -> c_int,
}

/// The next definition of a symbol after this library's. A C library without it is none that a program could have been
/// linked with, and nothing can be done then.
///
/// # Safety
/// `T` is a pointer to a function of the type that C's headers declare under this name.
unsafe fn next<T: Copy>(name: &CStr) -> T {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: the name is a C string, and RTLD_NEXT asks for definitions in libraries after this one.
    let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if symbol.is_null() {
        std::process::abort();
    }
    // SAFETY: the symbol is that function, and pointers to functions are as long as others.
    unsafe { std::mem::transmute_copy(&symbol) }
}

/// The functions, looked up once.
#[inline]
pub(crate) fn get() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    // SAFETY: each field is declared above as socket(2), close(2) and so on declare the function of its name.
    REAL.get_or_init(|| unsafe {
        Real {
            socket: next(c"socket"),
            close: next(c"close"),
            close_range: next(c"close_range"),
            connect: next(c"connect"),
            send: next(c"send"),
            sendmsg: next(c"sendmsg"),
            recv: next(c"recv"),
            recvmsg: next(c"recvmsg"),
            dup: next(c"dup"),
            dup2: next(c"dup2"),
            dup3: next(c"dup3"),
            fcntl: next(c"fcntl"),
        }
    })
}
