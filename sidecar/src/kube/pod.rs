//! The API server as a pod finds it: environment for the address, the mounted directory for CA and token.
//!
//! kubelet makes the address in the environment of the Service `kubernetes` of namespace `default`, and replaces it by that of a
//! Service `kubernetes` in the pod's own namespace (`getServiceEnvVarMap`). Whoever may create Services there could keep new pods
//! from starting, so the API server is looked for by its name, too.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    ApiError,
    http::{Access, Credentials, OtherAddress},
};

/// The name of the API server in every cluster, which is in its certificate, and the port of that Service.
const NAME: &str = "kubernetes.default.svc";
const PORT: u16 = 443;

/// A service account's token and CA in a directory.
#[derive(Clone, Debug)]
pub struct PodCredentials {
    dir: PathBuf,
    host: String,
    port: u16,
    other: Option<OtherAddress>,
}

impl PodCredentials {
    /// The API server that the environment names, with what is in `dir`.
    ///
    /// # Errors
    /// The environment names none: this is no pod.
    pub fn from_env(dir: &Path) -> Result<Self, ApiError> {
        let variable = |name: &str| {
            env::var(name).map_err(|_| {
                ApiError::Access(format!("{name} is not set: is this a pod? On a host use run --kubeconfig or request"))
            })
        };
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let port =
            port.parse().map_err(|_| ApiError::Access(format!("KUBERNETES_SERVICE_PORT {port:?} is no port")))?;
        let other = Some(OtherAddress { host: NAME.to_owned(), port: PORT, serves: Arc::default() });
        Ok(Self { dir: dir.to_owned(), host, port, other })
    }

    /// The API server at `host` and `port` and nowhere else, with what is in `dir`.
    pub fn new(dir: &Path, host: &str, port: u16) -> Self {
        Self { dir: dir.to_owned(), host: host.to_owned(), port, other: None }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ApiError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) if !bytes.iter().all(u8::is_ascii_whitespace) => Ok(bytes),
            // kubelet writes both anew from time to time; the next attempt finds them.
            Ok(_) => Err(ApiError::Access(format!("{} is empty; waiting for kubelet to write it", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(ApiError::Access(format!("{} is missing; waiting for kubelet to write it", path.display())))
            }
            Err(e) => Err(ApiError::Access(format!("{}: {e}", path.display()))),
        }
    }
}

impl Credentials for PodCredentials {
    fn access(&self) -> Result<Access, ApiError> {
        let token = Zeroizing::new(self.read("token")?);
        let token = std::str::from_utf8(&token)
            .map_err(|_| ApiError::Access(format!("{} is no token", self.dir.join("token").display())))?;
        Ok(Access {
            host: self.host.clone(),
            port: self.port,
            prefix: String::new(),
            roots: self.read("ca.crt")?,
            token: Some(Zeroizing::new(token.trim().to_owned())),
            identity: None,
            server_name: None,
            other: self.other.clone(),
        })
    }
}
