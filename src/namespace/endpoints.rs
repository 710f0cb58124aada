//! The in-kernel path manager of a network namespace: its endpoints and its limits.

use std::net::IpAddr;

use crate::abi::uapi::pm::{self, FLAG_BACKUP, FLAG_FULLMESH, FLAG_SIGNAL, FLAG_SUBFLOW};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::netlink::pm::endpoints::{
    encode_add, encode_delete, encode_flush, encode_set_flags, encode_set_limits,
};
use crate::netlink::pm::{Address, Limits};
use crate::netlink::Failure;

/// An endpoint, as the kernel lists it or, with an id of 0, as it is to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// The port that it announces, 0 for none.
    pub port: u16,
    pub id: u8,
    pub flags: u32,
    pub interface: Option<String>,
}

/// One that is there: by its id and, where the caller knows them, its address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    pub id: u8,
    pub pair: Option<(IpAddr, u16)>,
}

impl Endpoint {
    /// What every kernel refuses by EINVAL, or would take for something else.
    pub fn check(&self) -> Result<()> {
        let has = |flag| self.flags & flag != 0;
        if self.ip.is_unspecified() || self.ip.is_multicast() {
            return Err(Error::value(format!(
                "the address of an endpoint must be one of a host, not {}",
                self.ip
            )));
        }
        if self.port != 0 && (!has(FLAG_SIGNAL) || has(FLAG_SUBFLOW)) {
            return Err(Error::value(
                "an endpoint with a port must have the flag signal and not subflow: it announces the port",
            ));
        }
        if has(FLAG_SIGNAL) && has(FLAG_FULLMESH) {
            return Err(Error::value("an endpoint must not have both flags signal and fullmesh"));
        }
        Ok(())
    }
}

/// The names of the flags, for a message.
fn names(flags: u32) -> String {
    let names = pm::FLAGS.iter().filter(|(_, flag)| flags & flag != 0).map(|(name, _)| *name);
    names.collect::<Vec<_>>().join(", ")
}

/// The error of a command that the kernel refused.
fn refused(what: &str, failure: &Failure) -> Error {
    match failure.errno {
        libc::EPERM => Error::permission(format!(
            "{what} needs CAP_NET_ADMIN in the user namespace that owns the network namespace"
        )),
        libc::EOPNOTSUPP => {
            Error::unsupported(format!("{what}: this kernel has no such command of mptcp_pm"))
        }
        errno => Error::os(errno, format!("{what}: {}", failure.describe())),
    }
}

impl Namespace {
    /// The endpoints, in the order of their ids. No privilege.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        Ok(self.listed()?.into_iter().map(|address| self.endpoint(address)).collect())
    }

    fn listed(&self) -> Result<Vec<Address>> {
        self.pm.endpoints()?.map_err(|failure| refused("GET_ADDR", &failure))
    }

    fn endpoint(&self, address: Address) -> Endpoint {
        let Address { ip, port, id, flags, interface } = address;
        Endpoint { ip, port, id, flags, interface: (interface != 0).then(|| self.interface_name(interface)) }
    }

    /// Adds an endpoint and returns it as the kernel has it. One of whose flags the kernel has dropped is removed again.
    pub fn add_endpoint(&self, wanted: &Endpoint) -> Result<Endpoint> {
        wanted.check()?;
        let ip = wanted.ip.to_canonical();
        let interface = wanted.interface.as_deref().map_or(Ok(0), |name| self.interface_index(name))?;
        let asked = Address { ip, port: wanted.port, id: wanted.id, flags: wanted.flags, interface };
        let before = self.listed()?;
        if let Err(failure) = self.pm.command(&encode_add(&asked))? {
            return Err(not_added(&asked, &before, &failure));
        }
        let is_it = |address: &&Address| {
            (address.ip, address.port) == (ip, asked.port) && (asked.id == 0 || address.id == asked.id)
        };
        let listed = self.listed()?;
        let Some(added) = listed.iter().find(is_it) else {
            return Err(Error::os(
                libc::EADDRNOTAVAIL,
                format!("endpoint {ip}: another process removed it as soon as it was added"),
            ));
        };
        let dropped = asked.flags & !added.flags;
        if dropped != 0 {
            let _ = self.pm.command(&encode_delete(added))?;
            return Err(Error::unsupported(format!(
                "endpoint {ip}: this kernel has no endpoints with the flag {}",
                names(dropped)
            )));
        }
        Ok(self.endpoint(*added))
    }

    /// Sets the flags backup and fullmesh of an endpoint, where they are given, and returns it.
    pub fn change_endpoint(
        &self,
        which: Which,
        backup: Option<bool>,
        fullmesh: Option<bool>,
    ) -> Result<Endpoint> {
        let before = self.find_endpoint(which)?;
        let mut flags = before.flags;
        for (flag, wanted) in [(FLAG_BACKUP, backup), (FLAG_FULLMESH, fullmesh)] {
            match wanted {
                Some(true) => flags |= flag,
                Some(false) => flags &= !flag,
                None => {}
            }
        }
        if flags == before.flags {
            return Ok(self.endpoint(before));
        }
        if flags & FLAG_FULLMESH != 0 && before.flags & FLAG_SIGNAL != 0 {
            return Err(Error::value(format!(
                "endpoint {} has the flag signal, with which it must not have fullmesh",
                before.id
            )));
        }
        let what = format!("changing endpoint {}", before.id);
        self.pm.command(&encode_set_flags(before.id, flags))?.map_err(|failure| refused(&what, &failure))?;
        let after = self.find_endpoint(Which { id: before.id, pair: Some((before.ip, before.port)) })?;
        let mask = FLAG_BACKUP | FLAG_FULLMESH;
        if (after.flags ^ flags) & mask != 0 {
            let _ = self.pm.command(&encode_set_flags(before.id, before.flags))?;
            return Err(Error::unsupported(format!(
                "endpoint {}: this kernel cannot change the flag {}",
                before.id,
                names((after.flags ^ flags) & mask)
            )));
        }
        Ok(self.endpoint(after))
    }

    /// Removes an endpoint. The in-kernel path manager then closes the subflows that it opened from there, and withdraws
    /// the address where it has announced it.
    pub fn remove_endpoint(&self, which: Which) -> Result<()> {
        let endpoint = self.find_endpoint(which)?;
        let what = format!("removing endpoint {}", endpoint.id);
        self.pm.command(&encode_delete(&endpoint))?.map_err(|failure| refused(&what, &failure))
    }

    /// Removes all endpoints.
    pub fn flush_endpoints(&self) -> Result<()> {
        self.pm.command(&encode_flush())?.map_err(|failure| refused("removing all endpoints", &failure))
    }

    fn find_endpoint(&self, which: Which) -> Result<Address> {
        let listed = self.listed()?;
        let found = listed.iter().find(|address| address.id == which.id);
        let missing = |message: String| Err(Error::os(libc::EADDRNOTAVAIL, message));
        match (found, which.pair) {
            (None, None) => missing(format!("there is no endpoint with id {}", which.id)),
            (None, Some((ip, _))) => {
                missing(format!("there is no endpoint with id {} any more, which was {ip}", which.id))
            }
            (Some(found), Some((ip, port))) if (found.ip, found.port) != (ip.to_canonical(), port) => {
                missing(format!("endpoint {} is {} now, not {ip} as before", which.id, found.ip))
            }
            (Some(found), _) => Ok(*found),
        }
    }

    /// The limits. No privilege.
    pub fn limits(&self) -> Result<Limits> {
        self.pm.limits()?.map_err(|failure| refused("GET_LIMITS", &failure))
    }

    /// Sets the limits that are given, and returns those before.
    pub fn set_limits(&self, subflows: Option<u32>, add_addr_accepted: Option<u32>) -> Result<Limits> {
        let before = self.limits()?;
        if subflows.is_some() || add_addr_accepted.is_some() {
            let command = encode_set_limits(subflows, add_addr_accepted);
            self.pm.command(&command)?.map_err(|failure| refused("setting limits", &failure))?;
        }
        Ok(before)
    }
}

/// Why an endpoint was not added.
fn not_added(asked: &Address, before: &[Address], failure: &Failure) -> Error {
    let what = format!("endpoint {}", asked.ip);
    let same = before.iter().find(|other| (other.ip, other.port) == (asked.ip, asked.port));
    let at_id = before.iter().find(|other| asked.id != 0 && other.id == asked.id);
    match failure.errno {
        // Linux 6.1 answered EINVAL.
        libc::EEXIST | libc::EINVAL if same.is_some() => {
            let id = same.map_or(0, |other| other.id);
            Error::os(libc::EEXIST, format!("{what}: it is an endpoint already, with id {id}"))
        }
        libc::EBUSY | libc::EINVAL if at_id.is_some() => {
            let other = at_id.map_or_else(|| "another address".to_owned(), |other| other.ip.to_string());
            Error::os(libc::EBUSY, format!("{what}: id {} belongs to endpoint {other}", asked.id))
        }
        libc::ERANGE => Error::os(
            libc::ERANGE,
            format!("{what}: there are {} endpoints already, and this kernel takes no more", before.len()),
        ),
        libc::EADDRNOTAVAIL => Error::os(
            libc::EADDRNOTAVAIL,
            format!("{what}: with a port the kernel listens there, and the address is not local"),
        ),
        libc::EADDRINUSE => Error::os(
            libc::EADDRINUSE,
            format!("{what}: with a port the kernel listens there, and another socket does already"),
        ),
        _ => refused(&format!("adding {what}"), failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::uapi::pm::FLAG_LAMINAR;

    fn endpoint(flags: u32, port: u16) -> Endpoint {
        Endpoint { ip: "10.0.2.1".parse().unwrap(), port, id: 0, flags, interface: None }
    }

    #[test]
    fn what_every_kernel_refuses_is_refused_before() {
        for (flags, port) in
            [(0, 7), (FLAG_SUBFLOW, 7), (FLAG_SIGNAL | FLAG_SUBFLOW, 7), (FLAG_SIGNAL | FLAG_FULLMESH, 0)]
        {
            assert!(matches!(endpoint(flags, port).check(), Err(Error::Value { .. })), "{flags} {port}");
        }
        for (flags, port) in [(0, 0), (FLAG_SIGNAL | FLAG_BACKUP, 7), (FLAG_SIGNAL | FLAG_SUBFLOW, 0)] {
            assert_eq!(endpoint(flags, port).check(), Ok(()));
        }
        let nowhere = Endpoint { ip: "::".parse().unwrap(), ..endpoint(0, 0) };
        assert!(nowhere.check().is_err());
    }

    #[test]
    fn a_refusal_names_the_endpoint_that_is_in_the_way() {
        let at = |ip: &str, id| Address { id, ..Address::new(format!("{ip}:0").parse().unwrap()) };
        let before = [at("10.0.2.1", 3), at("10.0.3.1", 9)];
        let failed = |asked: Address, errno| not_added(&asked, &before, &Failure { errno, text: None });
        for errno in [libc::EEXIST, libc::EINVAL] {
            let error = failed(at("10.0.2.1", 0), errno);
            assert_eq!((error.errno(), error.to_string().contains("id 3")), (libc::EEXIST, true));
        }
        let error = failed(at("10.0.4.1", 9), libc::EBUSY);
        assert_eq!((error.errno(), error.to_string().contains("10.0.3.1")), (libc::EBUSY, true));
        assert_eq!(failed(at("10.0.4.1", 0), libc::EINVAL).errno(), libc::EINVAL);
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(names(FLAG_SIGNAL | FLAG_LAMINAR), "signal, laminar");
    }
}
