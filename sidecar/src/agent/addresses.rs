//! The pod's own addresses while it lives. The downward API says what they were when the container started; a changed
//! one shows on the interface alone.

use std::net::IpAddr;

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
}

/// The global addresses of all interfaces that are up, but for loopback's.
///
/// # Errors
/// The operating system's.
pub fn of_interfaces() -> nix::Result<Vec<Address>> {
    let mut addresses = Vec::new();
    for entry in getifaddrs()? {
        let Some(ip) = entry.address.and_then(|a| {
            let v4 = a.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        }) else {
            continue;
        };
        if entry.flags.contains(InterfaceFlags::IFF_UP) && is_global(ip) {
            addresses.push(Address { interface: entry.interface_name, ip });
        }
    }
    Ok(addresses)
}

fn is_global(ip: IpAddr) -> bool {
    !ip.is_loopback()
        && !ip.is_unspecified()
        && match ip {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        }
}

/// The pod's addresses now: the addresses of the downward API, where each address that left its interface is replaced by the
/// interface's first new one of the same family.
///
/// An address that merely appears beside them is none of the pod's: a second network's, or a floating one on a host's
/// interface, which the approver would refuse.
pub fn current(told: &[IpAddr], at_start: &[Address], now: &[Address]) -> Vec<IpAddr> {
    let mut current: Vec<IpAddr> = Vec::new();
    for ip in told {
        // Never seen on an interface here (a network that translates): no news can come from interfaces.
        let Some(home) = at_start.iter().find(|a| a.ip == *ip) else {
            current.push(*ip);
            continue;
        };
        if now.iter().any(|a| a.ip == *ip) {
            current.push(*ip);
            continue;
        }
        let successor = now.iter().find(|a| {
            a.interface == home.interface
                && a.ip.is_ipv4() == ip.is_ipv4()
                && !at_start.contains(a)
                && !current.contains(&a.ip)
        });
        // No successor yet: an address that is gone is not requested.
        current.extend(successor.map(|a| a.ip));
    }
    // All gone: an interface that is down for a moment is no reason to ask for nothing.
    if current.is_empty() { told.to_vec() } else { current }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn on(interface: &str, list: &[&str]) -> Vec<Address> {
        ips(list).into_iter().map(|ip| Address { interface: interface.to_owned(), ip }).collect()
    }

    #[test]
    fn only_a_lost_address_is_replaced() {
        let told = ips(&["10.0.0.5", "fd00::5"]);
        let start = on("eth0", &["10.0.0.5", "fd00::5"]);
        for (name, now, expected) in [
            ("nothing happens", on("eth0", &["10.0.0.5", "fd00::5"]), ips(&["10.0.0.5", "fd00::5"])),
            (
                "a floating address comes",
                on("eth0", &["10.0.0.5", "fd00::5", "10.0.0.200"]),
                ips(&["10.0.0.5", "fd00::5"]),
            ),
            ("one moves", on("eth0", &["10.0.0.9", "fd00::5"]), ips(&["10.0.0.9", "fd00::5"])),
            ("both move", on("eth0", &["fd00::9", "10.0.0.9"]), ips(&["10.0.0.9", "fd00::9"])),
            ("one goes", on("eth0", &["fd00::5"]), ips(&["fd00::5"])),
            ("one moves to a second network", on("net1", &["10.0.0.9", "fd00::5"]), ips(&["fd00::5"])),
            ("the interface is down", vec![], told.clone()),
        ] {
            assert_eq!(current(&told, &start, &now), expected, "{name}");
        }
    }

    #[test]
    fn addresses_that_no_interface_carries_stay_as_told() {
        let told = ips(&["203.0.113.7"]);
        assert_eq!(current(&told, &on("eth0", &["10.0.0.5"]), &on("eth0", &["10.0.0.6"])), told);
    }

    #[test]
    fn the_machine_can_be_asked() {
        let all = of_interfaces().unwrap();
        for address in &all {
            assert!(!address.ip.is_loopback() && !address.interface.is_empty(), "{address:?}");
        }
        // The address that the kernel would send from, where there is a route: no packet is sent.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(own.is_loopback() || all.iter().any(|address| address.ip == own), "{own} is not among {all:?}");
        }
    }
}
