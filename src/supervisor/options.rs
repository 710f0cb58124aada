//! getsockopt() and setsockopt() of the six options of 2016.

use std::io;
use std::os::fd::AsRawFd;

use super::caller::Caller;
use super::{is_short_of_descriptors, Outcome, Supervisor};
use crate::connection::by_descriptor::ByDescriptor;
use crate::connection::Connection;
use crate::enhanced_api::{self, Call, Caller as _, Layout, Name};
use crate::sys::seccomp::Notification;

/// What a call was given.
struct Arguments {
    fd: i32,
    call: Call,
    optval: u64,
    /// For getsockopt an address.
    optlen: u64,
}

pub fn serve(supervisor: &Supervisor, caller: &Caller<'_>, call: &Notification) -> Outcome {
    let [fd, _, optname, optval, optlen, _] = call.arguments;
    let Some(named) = Call::of(optname as i32, supervisor.settings.layout) else { return Outcome::Pass };
    let arguments = Arguments { fd: fd as i32, call: named, optval, optlen };
    // For other descriptors, closed ones for example, the kernel gives the error.
    let descriptor = match caller.descriptor(arguments.fd) {
        Ok(descriptor) => descriptor,
        Err(error) if is_short_of_descriptors(&error) => return Outcome::Fail(libc::ENOBUFS),
        Err(_) => return Outcome::Pass,
    };
    let fd = descriptor.as_raw_fd();
    if !enhanced_api::serve::is_tcp(fd).unwrap_or(false) || !supervisor.namespace.has_socket(fd) {
        return Outcome::Pass;
    }
    // The duplicate is the socket that was there when the call came. What the program does with its own descriptor
    // meanwhile does not matter.
    let connection = ByDescriptor::new(fd);
    if let Ok(known) = connection.known() {
        supervisor.connections.keep(&supervisor.namespace, known);
    }
    let result = if call.number == libc::SYS_getsockopt {
        get(&connection, caller, &arguments)
    } else {
        set(&connection, caller, &arguments)
    };
    match result {
        Ok(()) => Outcome::Succeed,
        Err(errno) => Outcome::Fail(errno),
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EFAULT)
}

fn get(connection: &ByDescriptor, caller: &Caller<'_>, arguments: &Arguments) -> Result<(), i32> {
    let mut length = [0; 4];
    caller.read(arguments.optlen, &mut length).map_err(|error| errno(&error))?;
    let length = usize::try_from(i32::from_ne_bytes(length)).map_err(|_| libc::EINVAL)?;
    let mut input = vec![0; length.min(arguments.call.input_size())];
    caller.read(arguments.optval, &mut input).map_err(|error| errno(&error))?;
    let Call { name, layout } = arguments.call;
    if name == Name::OpenSubTuple && layout != Layout::Kernel {
        // The id is written when the subflow exists already, so a buffer that cannot be written is refused before.
        let place = &input[..input.len().min(1)];
        caller.write(arguments.optval, place).map_err(|error| errno(&error))?;
    }
    let reply = enhanced_api::serve_get(connection, caller, arguments.call, &input, length)
        .map_err(|error| error.errno())?;
    match write(caller, arguments, &reply, length) {
        // Programs for the kernel's interface, which wrote nothing here, may have the tuple in read-only memory.
        Err(_) if name == Name::OpenSubTuple && layout == Layout::Kernel => Ok(()),
        written => written.map_err(|error| errno(&error)),
    }
}

/// Writes all of the reply, or nothing.
fn write(
    caller: &Caller<'_>,
    arguments: &Arguments,
    reply: &enhanced_api::Reply,
    length: usize,
) -> io::Result<()> {
    let mut before = vec![0; reply.bytes.len()];
    caller.read(arguments.optval, &mut before)?;
    let written = caller.write(arguments.optval, &reply.bytes).and_then(|()| {
        if reply.length == length {
            return Ok(());
        }
        caller.write(arguments.optlen, &(reply.length as u32).to_ne_bytes())
    });
    if written.is_err() {
        let _ = caller.write(arguments.optval, &before);
    }
    written
}

fn set(connection: &ByDescriptor, caller: &Caller<'_>, arguments: &Arguments) -> Result<(), i32> {
    let length = usize::try_from(arguments.optlen as i32).map_err(|_| libc::EINVAL)?;
    let mut input = vec![0; length.min(arguments.call.input_size())];
    caller.read(arguments.optval, &mut input).map_err(|error| errno(&error))?;
    enhanced_api::serve_set(connection, caller, arguments.call, &input).map_err(|error| error.errno())
}
