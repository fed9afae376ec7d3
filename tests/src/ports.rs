//! Ports that are free, never fixed ones.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, TcpListener},
    os::unix::fs::MetadataExt as _,
    process,
    sync::{Mutex, PoisonError},
};

/// Below those that Linux gives to connections unless told otherwise (`net.ipv4.ip_local_port_range`): one of these is still
/// free when it is bound at last, however many connections are made until then.
const FIRST: u16 = 20_000;
/// Test programs run side by side. Each has blocks of its own, by a lock that ends with it: else a port that one has found free is
/// bound by another one meanwhile.
const BLOCKS: u16 = 200;
const BLOCK: u16 = 50;
const MOST_BLOCKS: usize = 10;

/// The ports of this process, and the place of the next one.
struct Own {
    ports: Vec<u16>,
    next: usize,
    locks: Vec<File>,
}

static OWN: Mutex<Own> = Mutex::new(Own { ports: Vec::new(), next: 0, locks: Vec::new() });

impl Own {
    /// The next of them. After the last one it takes another block; if it has many, or there is none, it begins again.
    fn next(&mut self) -> u16 {
        if self.next == self.ports.len() && (self.locks.len() == MOST_BLOCKS || !self.take_a_block()) {
            assert!(!self.ports.is_empty(), "other test programs have all ports");
            self.next = 0;
        }
        self.next += 1;
        self.ports[self.next - 1]
    }

    fn take_a_block(&mut self) -> bool {
        // Another user's folder cannot be written.
        let user = fs::metadata("/proc/self").map(|process| process.uid()).unwrap_or_default();
        let directory = std::env::temp_dir().join(format!("etcd-tls-test-ports-{user}"));
        fs::create_dir_all(&directory).expect("a folder of locks");
        let first = u16::try_from(process::id() % u32::from(BLOCKS)).unwrap_or_default();
        let taken = (0..BLOCKS).map(|n| (first + n) % BLOCKS).find_map(|block| {
            let lock = File::create(directory.join(block.to_string())).expect("a lock");
            // Of this process too: each file has a lock of its own.
            lock.try_lock().is_ok().then_some((block, lock))
        });
        let Some((block, lock)) = taken else { return false };
        let from = FIRST + block * BLOCK;
        self.ports.extend(from..from + BLOCK);
        self.locks.push(lock);
        true
    }
}

/// A port of `address` that was free a moment ago, and that neither another test program nor one of the last calls was given.
pub fn free(address: impl Into<IpAddr>) -> u16 {
    let address = address.into();
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..usize::from(BLOCKS * BLOCK))
        .map(|_| own.next())
        .find(|port| match TcpListener::bind((address, *port)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::AddrInUse => false,
            Err(error) => panic!("bind {address}: {error}"),
        })
        .unwrap_or_else(|| panic!("no free port on {address}"))
}

/// [`free`] on 127.0.0.1.
pub fn loopback() -> u16 {
    free(Ipv4Addr::LOCALHOST)
}
