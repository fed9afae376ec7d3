//! A pod of local directories, whose sidecar runs against a stand-in for the API server.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::SystemTime};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr::PrivateKey,
    role::Role,
    san::Sans,
};
use tests::{
    csr_server::CsrServer,
    process::{Process, binary},
    temp::TempDir,
};

use super::LIMIT;

/// A pod's directories and the variables that it finds.
pub struct Pod {
    pub dir: TempDir,
    pub environment: Vec<(String, String)>,
}

impl Pod {
    pub fn new(server: &CsrServer) -> Self {
        let dir = TempDir::new("pod");
        server.token_directory(&dir);
        server.trust_directory(&dir);
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = vec![
            variable("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            variable("KUBERNETES_SERVICE_PORT", &server.port.to_string()),
            variable("POD_NAME", "etcd-0"),
            variable("POD_NAMESPACE", "prod"),
            variable("POD_UID", "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11"),
            variable("POD_SERVICE_ACCOUNT", "default"),
            variable("NODE_NAME", "node-1"),
            variable("POD_IPS", "127.0.0.1"),
        ];
        Self { dir, environment }
    }

    pub fn command(&self, subcommand: &str, more: &[&str]) -> Command {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.arg(subcommand).args(["--roles=peer,server", "--log-level=info"]);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        command.args(more).envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    pub fn start(&self, subcommand: &str, more: &[&str]) -> Process {
        Process::spawn(subcommand, &mut self.command(subcommand, more), self.dir.path())
    }

    /// Gives the pod another address.
    pub fn move_to(&mut self, address: &str) {
        self.environment.retain(|(name, _)| name != "POD_IPS");
        self.environment.push(("POD_IPS".to_owned(), address.to_owned()));
    }

    pub async fn init(&self) {
        let mut init = self.start("init", &[]);
        let status = init.wait(LIMIT).await;
        assert!(status.success(), "{status}: {}", init.log());
    }

    pub fn run(&self, more: &[&str]) -> (Process, u16) {
        let port = tests::ports::loopback();
        let mut arguments = vec![format!("--admin-port={port}")];
        arguments.extend(more.iter().map(|&s| s.to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        (self.start("run", &arguments), port)
    }

    pub fn serial(&self, role: Role) -> String {
        set_of(&self.dir.join("certs")).expect("a whole set")[&role].clone()
    }
}

/// Reads the directory as etcd would, and verifies it as a peer would: one generation, every key its certificate's, every
/// chain good under its bundle. The serials by role, or what is wrong; `Ok` and empty where nothing was installed yet. Where
/// the set was exchanged meanwhile, what was read may be of both: it is read again.
pub fn set_of(dir: &Path) -> Result<BTreeMap<Role, String>, String> {
    let installed = || fs::read_link(dir.join("..data")).ok();
    loop {
        let Some(before) = installed() else { return Ok(BTreeMap::new()) };
        let set = read_set(dir);
        match installed() {
            Some(now) if now == before => return set,
            Some(_) => {}
            None => return Err("the set is gone".to_owned()),
        }
    }
}

fn read_set(dir: &Path) -> Result<BTreeMap<Role, String>, String> {
    let mut serials = BTreeMap::new();
    let mut generations = Vec::new();
    for role in [Role::Peer, Role::Server] {
        let role_dir = dir.join(role.as_str());
        generations.push(fs::canonicalize(&role_dir).map_err(|e| format!("{role}: {e}"))?.parent().map(Path::to_owned));
        let read = |name: &str| fs::read(role_dir.join(name)).map_err(|e| format!("{role}/{name}: {e}"));
        let chain = Chain::parse(&read("tls.crt")?).map_err(|e| format!("{role}/tls.crt: {e}"))?;
        let bundle = Bundle::parse(&read("ca.crt")?).map_err(|e| format!("{role}/ca.crt: {e}"))?;
        let key =
            PrivateKey::from_pem(&String::from_utf8_lossy(&read("tls.key")?)).map_err(|e| format!("{role}: {e}"))?;
        chain
            .verify(role, &bundle, &key.public_key(), &Sans::default(), SystemTime::now())
            .map_err(|e| format!("{role}: {e}"))?;
        serials.insert(role, chain.serial);
    }
    generations.dedup();
    if generations.len() != 1 {
        return Err(format!("a mixture of {generations:?}"));
    }
    Ok(serials)
}

pub async fn get(port: u16, path: &str) -> Result<String, String> {
    let run =
        Command::new("curl").args(["-sS", "-w", "\n%{http_code}", &format!("http://127.0.0.1:{port}{path}")]).output();
    let output = run.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.rsplit_once('\n') {
        Some((body, "200")) => Ok(body.to_owned()),
        _ => Err(format!("{text} {}", String::from_utf8_lossy(&output.stderr))),
    }
}
