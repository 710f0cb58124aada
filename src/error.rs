//! The one error type: one variant a cause, errno kept, and a sentence that says what to do.

use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// Why something is refused, where a caller can do something about it. Who offers these functions to others says what, in
/// the words of its own interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An address that the kernel has forgotten and that cannot be withdrawn without announcing it once more.
    AddressForgotten,
    /// An address id that subflows use.
    AddressInUse,
    /// The peer denies further subflows to its initial address and port.
    DeniedByPeer,
    /// Only the in-kernel path manager changes the connection's subflows and addresses.
    KernelPathManager,
    /// The last subflow, where nothing could open another.
    LastSubflow,
    /// The kernel opens no subflow as a backup; it can become one later.
    NoBackupAtOpening,
    /// A link-local address without its interface.
    NoInterface,
    /// A local address of another family than the connection's remote one, and no remote one given.
    OtherFamily,
    /// A socket of another network namespace, which this process must not enter.
    OtherNamespace,
    /// Made by the process that this one was forked from.
    OtherProcess,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A value that is refused before any system call.
    #[error("{message}")]
    Value { message: String, cause: Option<Cause> },
    /// A failed call with no cause of its own in this list.
    #[error("{message}")]
    Os { errno: i32, message: String, cause: Option<Cause> },
    /// Plain TCP, or a connection that fell back to it.
    #[error("{message}")]
    NotMultipath { message: String },
    /// A subflow that could not be opened, closed or changed.
    #[error("{message}")]
    Subflow { errno: i32, message: String, reset_reason: Option<u32>, cause: Option<Cause> },
    /// The connection is under the in-kernel path manager.
    #[error("{message}")]
    PathManager { message: String, cause: Option<Cause> },
    /// This kernel or host lacks a feature.
    #[error("{message}")]
    Unsupported { message: String, cause: Option<Cause> },
}

impl Error {
    pub fn value(message: impl Into<String>) -> Error {
        Error::Value { message: message.into(), cause: None }
    }

    pub fn os(errno: i32, message: impl Into<String>) -> Error {
        Error::Os { errno, message: message.into(), cause: None }
    }

    /// A failed call, by its name.
    pub fn call(call: &str, error: &io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let advice = match errno {
            libc::EMFILE => ": close some, or raise RLIMIT_NOFILE (ulimit -n)",
            libc::ENFILE => ": raise the sysctl fs.file-max",
            _ => "",
        };
        Error::os(errno, format!("{call}: {}{advice}", describe(errno)))
    }

    pub fn subflow(errno: i32, message: impl Into<String>) -> Error {
        Error::Subflow { errno, message: message.into(), reset_reason: None, cause: None }
    }

    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::Unsupported { message: message.into(), cause: None }
    }

    pub fn path_manager(message: impl Into<String>) -> Error {
        Error::PathManager { message: message.into(), cause: None }
    }

    /// The same with a cause that a caller can do something about.
    pub fn because(mut self, why: Cause) -> Error {
        match &mut self {
            Error::Value { cause, .. }
            | Error::Os { cause, .. }
            | Error::Subflow { cause, .. }
            | Error::PathManager { cause, .. }
            | Error::Unsupported { cause, .. } => *cause = Some(why),
            Error::NotMultipath { .. } => {}
        }
        self
    }

    pub fn cause(&self) -> Option<Cause> {
        match self {
            Error::Value { cause, .. }
            | Error::Os { cause, .. }
            | Error::Subflow { cause, .. }
            | Error::PathManager { cause, .. }
            | Error::Unsupported { cause, .. } => *cause,
            Error::NotMultipath { .. } => None,
        }
    }

    pub fn permission(message: impl Into<String>) -> Error {
        Error::os(libc::EPERM, message)
    }

    /// The errno that the exception carries.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Value { .. } => libc::EINVAL,
            Error::Os { errno, .. } | Error::Subflow { errno, .. } => *errno,
            Error::NotMultipath { .. } => libc::EOPNOTSUPP,
            Error::PathManager { .. } => libc::EBUSY,
            Error::Unsupported { .. } => libc::ENOSYS,
        }
    }
}

/// Whether a call failed only because this process or the host is short of something at the moment.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}

/// strerror() of an errno.
pub fn describe(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_keeps_errno_and_name() {
        let error = Error::call("getsockopt(MPTCP_INFO)", &io::Error::from_raw_os_error(libc::EBADF));
        assert_eq!(error.errno(), libc::EBADF);
        assert_eq!(error.to_string(), "getsockopt(MPTCP_INFO): Bad file descriptor");
    }
}
