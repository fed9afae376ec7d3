//! Issued certificates, read by libraries that did not make them: OpenSSL verifies each role's chain as server and as client
//! and prints it, and webpki, which rustls verifies with, accepts it.

use std::{collections::BTreeSet, path::Path, process::Command, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tests::{
    process::{binary, run, which},
    temp::TempDir,
    tier,
};

/// A role, its directory below what `issue` writes, and what OpenSSL must print of it.
struct Case {
    role: &'static str,
    owner: &'static str,
    subject: &'static str,
    usages: &'static str,
    names: &'static [&'static str],
    server: bool,
    client: bool,
}

const CASES: [Case; 4] = [
    Case {
        role: "peer",
        owner: "etcd-0",
        subject: "O=system:etcd-peers,CN=system:etcd-peer:etcd-0",
        usages: "TLS Web Server Authentication, TLS Web Client Authentication",
        names: &["DNS:etcd-0.example.com", "IP Address:10.0.0.1", "IP Address:2001:DB8:0:0:0:0:0:1"],
        server: true,
        client: true,
    },
    Case {
        role: "server",
        owner: "etcd-0",
        subject: "O=system:etcd-servers,CN=system:etcd-server:etcd-0",
        usages: "TLS Web Server Authentication, TLS Web Client Authentication",
        names: &["DNS:etcd-0.example.com", "DNS:localhost", "IP Address:10.0.0.1", "IP Address:127.0.0.1"],
        server: true,
        client: true,
    },
    Case {
        role: "metrics",
        owner: "etcd-0",
        subject: "O=system:etcd-metrics,CN=system:etcd-metrics:etcd-0",
        usages: "TLS Web Client Authentication",
        names: &[],
        server: false,
        client: true,
    },
    Case {
        role: "client",
        owner: "etcd-backup",
        subject: "O=system:etcd-clients,CN=backup",
        usages: "TLS Web Client Authentication",
        names: &[],
        server: false,
        client: true,
    },
];

fn openssl(arguments: &[&str], file: &Path) -> Result<String, String> {
    let output = Command::new("openssl").args(arguments).arg(file).output().expect("run openssl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(text + &String::from_utf8_lossy(&output.stderr)) }
}

/// Whether OpenSSL accepts the chain in `file` for `purpose`, with no other anchor than `anchor`.
fn accepted(file: &Path, anchor: &Path, purpose: &str) -> Result<String, String> {
    let anchor = anchor.display().to_string();
    openssl(
        &[
            "verify",
            "-x509_strict",
            "-no-CApath",
            "-CAfile",
            &anchor,
            "-purpose",
            purpose,
            "-untrusted",
            &file.display().to_string(),
        ],
        file,
    )
}

#[test]
fn openssl_and_webpki_accept_what_is_issued_for_each_role() {
    if which("openssl").is_none() {
        tier::skip(1, "no openssl", "apt-get install openssl");
        return;
    }
    tests::install_crypto();
    for (key, algorithm) in [
        ("ecdsa-p256", "NIST CURVE: P-256"),
        ("ecdsa-p384", "NIST CURVE: P-384"),
        ("ed25519", "Public Key Algorithm: ED25519"),
        ("rsa-3072", "Public-Key: (3072 bit)"),
        ("rsa-4096", "Public-Key: (4096 bit)"),
    ] {
        issued_with(key, algorithm);
    }
}

/// The same of keys of this kind, which OpenSSL prints so.
fn issued_with(key: &str, algorithm: &str) {
    let dir = TempDir::new("oracle");
    let out = dir.join("out");
    let mut issue = Command::new(binary("etcd-tls-webhook"));
    issue.args(["issue", "--cluster=etcd", "--roles=peer,server,metrics", "--client=backup", "--key", key]);
    issue
        .args(["--member=etcd-0=etcd-0.example.com,10.0.0.1,2001:db8::1", "--duration=24h", "--ca-dir"])
        .arg(dir.join("ca"));
    run(issue.arg("--out").arg(&out));
    let mut serials = BTreeSet::new();
    for case in CASES {
        let role = out.join(case.owner).join(case.role);
        let (chain, anchor) = (role.join("tls.crt"), role.join("ca.crt"));
        for (purpose, fine) in [("sslserver", case.server), ("sslclient", case.client)] {
            let verdict = accepted(&chain, &anchor, purpose);
            assert_eq!(verdict.is_ok(), fine, "{} as {purpose}: {verdict:?}", case.role);
        }
        // The other domain's CA is no anchor for it.
        let other = dir.join("ca").join(if case.role == "peer" { "client.crt" } else { "peer.crt" });
        assert!(accepted(&chain, &other, "sslclient").is_err(), "{} under the other CA", case.role);
        let text = openssl(&["x509", "-noout", "-text", "-nameopt", "RFC2253,-dn_rev", "-in"], &chain).expect("text");
        for expected in [case.subject, case.usages, "CA:FALSE", "X509v3 Authority Key Identifier", algorithm] {
            assert!(text.contains(expected), "{key}, {}: no {expected} in\n{text}", case.role);
        }
        for name in case.names {
            assert!(text.contains(name), "{}: no {name} in\n{text}", case.role);
        }
        assert_eq!(text.contains("Subject Alternative Name"), !case.names.is_empty(), "{}:\n{text}", case.role);
        let serial = openssl(&["x509", "-noout", "-serial", "-in"], &chain).expect("serial");
        assert!(serials.insert(serial), "{}: a serial number twice", case.role);
        let key = openssl(&["pkey", "-pubout", "-in"], &role.join("tls.key")).expect("key");
        assert_eq!(key, openssl(&["x509", "-noout", "-pubkey", "-in"], &chain).expect("key"), "{}", case.role);
    }
    let role = |owner: &str, role: &str| out.join(owner).join(role);
    let (peer, server) = (role("etcd-0", "peer"), role("etcd-0", "server"));
    handshake(&peer, &peer).expect("member to member");
    for client in [&server, &role("etcd-0", "metrics"), &role("etcd-backup", "client")] {
        handshake(client, &server).unwrap_or_else(|e| panic!("{}: {e}", client.display()));
    }
    handshake(&role("etcd-backup", "client"), &peer).expect_err("a client opens no peer port");
}

/// A TLS handshake in memory, with both chains verified by webpki: `client`'s files against those of `server`.
fn handshake(client: &Path, server: &Path) -> Result<(), rustls::Error> {
    let read = |dir: &Path, name: &str| std::fs::read(dir.join(name)).expect("a file");
    let certificates = |pem: &[u8]| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().expect("PEM");
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&read(server, "ca.crt")));
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let key = PrivateKeyDer::from_pem_slice(&read(server, "tls.key")).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&read(server, "tls.crt")), key)?;
    let mut server = rustls::ServerConnection::new(Arc::new(config))?;
    let config = tests::pki::client_config_of(client).expect("a client's TLS files");
    let mut client = rustls::ClientConnection::new(config, "etcd-0.example.com".try_into().expect("a name"))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("write");
        }
        server.read_tls(&mut wire.as_slice()).expect("read");
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("write");
        }
        client.read_tls(&mut wire.as_slice()).expect("read");
        client.process_new_packets()?;
    }
    Ok(())
}
