//! Ports that the kernel gives, never fixed ones.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::{LazyLock, Mutex},
};

/// A port of `address` that was free a moment ago, and that no other call in this process was given.
pub fn free(address: impl Into<IpAddr>) -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let address = address.into();
    for _ in 0..100 {
        let listener = TcpListener::bind((address, 0)).unwrap_or_else(|e| panic!("bind {address}: {e}"));
        let port = listener.local_addr().expect("a bound socket has an address").port();
        if GIVEN.lock().expect("no panic while held").insert(port) {
            return port;
        }
    }
    panic!("no free port on {address}");
}

/// [`free`] on 127.0.0.1.
pub fn loopback() -> u16 {
    free(Ipv4Addr::LOCALHOST)
}
