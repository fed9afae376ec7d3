//! A standalone signer by its real binary, with a CA, two tokens and a client that writes HTTP by hand, so that refusals show
//! as they are on the wire.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{csr::PrivateKey, key::KeyAlgorithm, role::Role, san::Sans};
use serde_json::{Value, json};

use crate::{
    etcd::{EtcdCluster, MemberTls},
    eventually,
    pki::{Ca, LeafOptions, client_config},
    ports,
    process::{Process, binary},
    temp::TempDir,
};

/// Patience with everything; nothing waits for it that goes well.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The token of user bootstrap, group system:bootstrappers:etcd.
pub const BOOTSTRAP: &str = "3f1c7be2a94d5068b7e1c2d3f4a5968700112233445566778899aabbccddeeff";
/// The token of user admin, group system:masters.
pub const ADMIN: &str = "9a8b7c6d5e4f30211203f4e5d6c7b8a900ffeeddccbbaa998877665544332211";
/// The rules for hosts on loopback, with the bootstrap token and with their certificates.
pub const HOSTS: [&str; 4] = [
    "--approve-group=system:bootstrappers:etcd=peer:127.0.0.0/8,::1",
    "--approve-group=system:bootstrappers:etcd=server:127.0.0.0/8,::1",
    "--approve-group=system:etcd-peers=peer:127.0.0.0/8,::1",
    "--approve-group=system:etcd-peers=server:127.0.0.0/8,::1",
];
/// The resource.
pub const V1: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// The resource, as the agents of before 1.19 know it.
pub const V1BETA1: &str = "/apis/certificates.k8s.io/v1beta1/certificatesigningrequests";

/// A standalone signer, its CA and all that it is started with.
pub struct Signer {
    /// All files.
    pub dir: TempDir,
    /// The CA of the serving certificate.
    pub serving: Ca,
    /// The CA that signs.
    pub ca: Ca,
    /// Of loopback.
    pub address: IpAddr,
    /// On it.
    pub port: u16,
    /// More arguments of the program.
    pub arguments: Vec<String>,
    /// While it runs.
    pub process: Option<Process>,
}

impl Signer {
    /// Prepares its files without starting it.
    pub fn new(arguments: &[&str]) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), arguments)
    }

    /// [`Self::new`], on this address of loopback.
    pub fn at(address: IpAddr, arguments: &[&str]) -> Self {
        let dir = TempDir::new("standalone");
        let (serving, ca) = (Ca::new("serving CA"), Ca::new("etcd CA"));
        let ips = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        serving.write_role(&dir.join("serving"), &LeafOptions { ips, ..LeafOptions::default() });
        dir.write("ca.crt", &ca.pem);
        dir.write("clients.crt", &ca.pem);
        dir.write("ca.key", &ca.key_pem);
        dir.write(
            "tokens",
            format!("{BOOTSTRAP},bootstrap,1,\"system:bootstrappers:etcd\"\n{ADMIN},admin,2,system:masters\n"),
        );
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self { dir, serving, ca, address, port: ports::free(address), arguments, process: None }
    }

    /// The command that starts it on a directory and port.
    pub fn command(&self, csrdir: &Path, port: u16) -> Command {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let path = |name: &str| self.dir.join(name);
        command.arg("standalone");
        for (flag, value) in [
            ("--cacrt", path("ca.crt")),
            ("--cakey", path("ca.key")),
            ("--servcrt", path("serving/tls.crt")),
            ("--servkey", path("serving/tls.key")),
            ("--token-auth-file", path("tokens")),
            ("--client-ca-file", path("clients.crt")),
            ("--csrdir", csrdir.to_owned()),
        ] {
            command.arg(flag).arg(value);
        }
        command.arg("--address").arg(SocketAddr::new(self.address, port).to_string()).args(&self.arguments);
        command
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(&mut self) {
        let mut command = self.command(&self.dir.join("csrs"), self.port);
        self.process = Some(Process::spawn("signer", &mut command, self.dir.path()));
        eventually("the signer is ready", LIMIT, || async {
            match self.try_ask("GET", "/readyz", &[], b"", None) {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// [`Self::new`] and [`Self::start`].
    pub async fn started(arguments: &[&str]) -> Self {
        let mut signer = Self::new(arguments);
        signer.start().await;
        signer
    }

    /// An etcd whose members have the certificates that [`sidecar`] leaves for hosts of their names; not started.
    pub fn etcd(&self, mut cluster: EtcdCluster) -> EtcdCluster {
        for member in &mut cluster.members {
            let dir = self.dir.join(&member.name);
            member.tls = MemberTls { server: Some(dir.join("server")), peer: Some(dir.join("peer")) };
        }
        cluster
    }

    /// [`Self::started`], with an approval of all that hosts on loopback ask for, and certificates of this life.
    pub async fn of_hosts(life: Duration) -> Self {
        Self::of_hosts_at(Ipv4Addr::LOCALHOST.into(), life).await
    }

    /// [`Self::of_hosts`], on this address of loopback.
    pub async fn of_hosts_at(address: IpAddr, life: Duration) -> Self {
        let durations = ["peer", "server"].map(|role| format!("--{role}certdur={}s", life.as_secs()));
        let durations = durations.iter().map(String::as_str);
        let mut signer = Self::at(address, &HOSTS.into_iter().chain(durations).collect::<Vec<_>>());
        signer.start().await;
        signer
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }

    /// One call on a connection of its own.
    ///
    /// # Errors
    /// The connection's.
    pub fn try_ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        leaf: Option<(&str, &str)>,
    ) -> std::io::Result<(u16, String)> {
        let (code, body) = self.try_ask_bytes(method, path, headers, body, leaf)?;
        Ok((code, String::from_utf8_lossy(&body).into_owned()))
    }

    /// [`Self::try_ask`], for an answer that is no text.
    ///
    /// # Errors
    /// The connection's.
    pub fn try_ask_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        leaf: Option<(&str, &str)>,
    ) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = self.connect(leaf)?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (key, value) in headers {
            head += &format!("{key}: {value}\r\n");
        }
        if !headers.iter().any(|(key, _)| *key == "Content-Length" || *key == "Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        // A server that has refused already may no longer read.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        // Some servers close without a TLS goodbye.
        let read = stream.read_to_end(&mut answer);
        let code = answer.get(9..12).and_then(|c| std::str::from_utf8(c).ok()?.parse().ok());
        let Some(code) = code else { return Err(read.err().unwrap_or_else(|| std::io::Error::other("no answer"))) };
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |end| end + 4);
        Ok((code, answer.split_off(head)))
    }

    fn connect(&self, leaf: Option<(&str, &str)>) -> std::io::Result<Stream> {
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let connection = rustls::ClientConnection::new(client_config(&self.serving.pem, leaf), name);
        let tcp = TcpStream::connect(SocketAddr::new(self.address, self.port))?;
        tcp.set_read_timeout(Some(LIMIT))?;
        Ok(rustls::StreamOwned::new(connection.map_err(std::io::Error::other)?, tcp))
    }

    /// A connection that stays open for call after call.
    ///
    /// # Panics
    /// The signer does not answer.
    pub fn session(&self) -> Session {
        Session(BufReader::new(self.connect(None).expect("the signer answers")))
    }

    /// One call with a token and JSON.
    pub fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (code, text) = self.try_ask(method, path, &headers, &body, None).expect("an answer");
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Writes a kubeconfig for a token.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.dir.write(
            name,
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{ "name": "c", "cluster": {
                    "server": format!("https://{}", SocketAddr::new(self.address, self.port)),
                    "certificate-authority-data": STANDARD.encode(&self.serving.pem),
                } }],
                "users": [{ "name": "u", "user": { "token": token } }],
                "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            })
            .to_string(),
        )
    }
}

type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// One kept connection.
pub struct Session(BufReader<Stream>);

impl Session {
    /// Sends a request just as it is, and reads the answer: its code and body.
    ///
    /// # Panics
    /// No answer, or one without a length.
    pub fn send(&mut self, request: &[u8]) -> (u16, String) {
        self.0.get_mut().write_all(request).expect("sent");
        let (mut code, mut length) = (0, 0);
        for number in 0.. {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a line of the answer");
            let line = line.trim_end().to_ascii_lowercase();
            if number == 0 {
                code = line.get(9..12).and_then(|c| c.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the answer's body");
        (code, String::from_utf8(body).expect("text"))
    }
}

/// The requests of a recorded connection, one after the other: each is its head, and a body where it says so.
pub fn recorded(connection: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = connection;
    let mut requests = Vec::new();
    while !rest.is_empty() {
        let head = rest.windows(4).position(|w| w == b"\r\n\r\n").expect("the end of a head") + 4;
        let text = String::from_utf8_lossy(&rest[..head]).into_owned();
        let length =
            text.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().expect("a length"));
        let (request, next) = rest.split_at(head + length);
        requests.push(request.to_vec());
        rest = next;
    }
    requests
}

/// Names and addresses.
pub fn sans(dns: &[&str], ips: &[&str]) -> Sans {
    Sans {
        dns: dns.iter().map(|d| (*d).to_owned()).collect(),
        ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
    }
}

/// A request object for `role` of `host`.
pub fn request(name: &str, role: Role, host: &str, sans: &Sans) -> (Value, PrivateKey) {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let cn = format!("{}{host}", role.common_name_prefix());
    let pem = key.request(role.organization(), &cn, sans).expect("a request");
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": { "name": name },
        "spec": {
            "request": STANDARD.encode(pem),
            "signerName": format!("{}.etcd-tls.dev/kube-system.etcd", role.domain()),
            "usages": etcd_tls_contract::identity::usages(role),
        },
    });
    (object, key)
}

/// Holds an answer to be a Status of this code whose message has this word.
pub fn assert_status(answer: &(u16, Value), code: u16, word: &str) {
    let (got, body) = answer;
    assert_eq!(
        (*got, body["kind"].as_str(), body["code"].as_u64()),
        (code, Some("Status"), Some(code.into())),
        "{body}"
    );
    assert!(body["message"].as_str().unwrap_or_default().contains(word), "{word}: {body}");
}

/// Runs `etcd-tls-webhook revoke kube-system/etcd`.
///
/// # Errors
/// The text of stderr, where it failed.
pub fn revoke(kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["revoke", "kube-system/etcd"]).args(arguments).env("KUBECONFIG", kubeconfig);
    let output = command.output().expect("run the command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

/// Starts the sidecar of one host.
pub fn sidecar(signer: &Signer, name: &str, bootstrap: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["run", "--roles=peer,server", "--name", name, "--admin-port"]).arg(ports::loopback().to_string());
    command.arg("--kubeconfig").arg(signer.dir.join(format!("{name}.kubeconfig")));
    command.arg("--bootstrap-kubeconfig").arg(bootstrap);
    command.arg("--dir").arg(signer.dir.join(name)).args(arguments);
    Process::spawn(&format!("sidecar-{name}"), &mut command, signer.dir.path())
}
