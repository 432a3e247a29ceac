//! The C library's own functions, behind those of this library.

use libc::{c_char, c_int, c_uint, c_void, msghdr, size_t, sockaddr, socklen_t, ssize_t};
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
fn next(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string, and RTLD_NEXT asks for definitions in libraries after this one.
    let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) };
    if symbol.is_null() {
        std::process::abort();
    }
    symbol
}

/// The functions, looked up once.
#[inline]
pub(crate) fn get() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    REAL.get_or_init(|| {
        macro_rules! function {
            // SAFETY: the symbol is the C library's function of this name, whose type C's headers declare as the field's.
            ($name:literal) => { unsafe { std::mem::transmute::<*mut c_void, _>(next($name)) } };
        }
        Real {
            socket: function!(c"socket"),
            close: function!(c"close"),
            close_range: function!(c"close_range"),
            connect: function!(c"connect"),
            send: function!(c"send"),
            sendmsg: function!(c"sendmsg"),
            recv: function!(c"recv"),
            recvmsg: function!(c"recvmsg"),
            dup: function!(c"dup"),
            dup2: function!(c"dup2"),
            dup3: function!(c"dup3"),
            fcntl: function!(c"fcntl"),
        }
    })
}
