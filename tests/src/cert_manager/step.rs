//! step-issuer, an external issuer of cert-manager, with the CA that it asks, step-ca. `STEP_ISSUER_BIN` names a directory with the
//! programs `step-issuer` and `step-ca`, and step-issuer's CustomResourceDefinitions in `crds`.

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{LIMIT, programs};
use crate::{apiserver::ApiServer, eventually, pki::Ca, ports, process::Process};

/// The StepIssuer of the namespace, and step-ca's provisioner.
pub const ISSUER: &str = "company";
/// The key by which step-issuer asks step-ca, and the same encrypted with [`PASSWORD`]: made for this test.
const PROVISIONER: &str = r#"{
    "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "CL3l8eT4gjN-z6ng2bc2C_PFFsMEx8PzHB1Fr9Jpf9k",
    "x": "JbJg8-fg1YO5XvvJNuHsAY2sLgheoPcAysEmO0ajdpc", "y": "QcNfkz2hvvW8UUH37cFkmOqLQaf_mIpmCvO-E_dT8PI"
}"#;
const ENCRYPTED_KEY: &str = "eyJhbGciOiJQQkVTMi1IUzI1NitBMTI4S1ciLCJjdHkiOiJqd2sranNvbiIsImVuYyI6IkEyNTZHQ00iLCJwMmMiOjEwMDAwMCwicDJzIjoidV\
    JscUh5b3BySmtXbHFVREhpSGtDQSJ9.9_lZhYWBnPdFWVEQCWL9Qp91_c04XUWxTrK0OKTyqqDPfDcEBRqTPA.6qS5CSlqkK9Wd3qg.tdzdT0x\
    uSIxTBnFMDkuSGizedgsgA498cOFumSdYrcWA_kwvd83c8dhw9CqmQjmRWc8mnY8-QH-BKSPqhJxA9TR8fVoa1LZand5T7hofyhTa0jaZItILE\
    7LScHIWcxsT_GzAqM0TPK7qi-i-hbeaSHc_R9JAFMYR8Oxh9KVVJ1BIpC3LzwSs45f73bD6c0aiidDPVgMCOtlSgzM3k3_iv5kGWE6DvTpP1n1\
    lIaJbQESf6qn7hItSBhC7o7uAqYtkf0uC9aVFViNuWbH0SMuduiJjHiX7qqUHIdHeNicR-bZHL5lJbVyK0yEwFyjBkX60Vo54SnCKxU4995H3t\
    Fo.Hl_XdYLRuLv3r1i21eEBnQ";
const PASSWORD: &str = "step";

/// The running programs.
pub struct Step {
    /// The root above step-ca's own CA.
    root: Ca,
    program: PathBuf,
    directory: PathBuf,
    port: u16,
    ca: Option<Process>,
    issuer: Process,
}

impl Step {
    /// Where they are on this machine; `None`, having said so, where it has none.
    pub fn find() -> Option<PathBuf> {
        programs::directory("STEP_ISSUER_BIN", "step-issuer", "step-issuer and step-ca, and step-issuer's CRDs in crds")
    }

    /// Runs both with a StepIssuer in `namespace`, as cluster-admin. `template` is of step-ca's certificates; `None`: its default.
    pub async fn start(api: &ApiServer, programs: &Path, namespace: &str, template: Option<&str>) -> Self {
        programs::install_definitions(api, &programs.join("crds")).await;
        let (root, port, directory) = (Ca::new("step root CA"), ports::loopback(), api.directory().dir("step"));
        let intermediate = root.below("step intermediate CA");
        for (file, text) in [("root.crt", &root.pem), ("ca.crt", &intermediate.pem), ("ca.key", &intermediate.key_pem)]
        {
            std::fs::write(directory.join(file), text).expect("write");
        }
        let mut issuer = Command::new(programs.join("step-issuer"));
        issuer.arg("--kubeconfig").arg(&api.kubeconfig).arg("--metrics-addr=0");
        let issuer = Process::spawn("step-issuer", &mut issuer, &directory);
        let mut step = Self { root, program: programs.join("step-ca"), directory, port, ca: None, issuer };
        step.run(template).await;
        step.refer(api, namespace).await;
        step
    }

    /// The root of its certificates; PEM.
    pub fn root(&self) -> &str {
        &self.root.pem
    }

    /// What step-issuer has logged.
    pub fn log(&self) -> String {
        self.issuer.log()
    }

    /// Stops step-ca.
    pub fn stop(&mut self) {
        self.ca = None;
    }

    /// Runs step-ca again with this template.
    pub async fn run(&mut self, template: Option<&str>) {
        self.stop();
        let path = |name: &str| self.directory.join(name);
        let key: Value = serde_json::from_str(PROVISIONER).expect("JSON");
        let mut provisioner = json!({"type": "JWK", "name": ISSUER, "key": key, "encryptedKey": ENCRYPTED_KEY});
        if let Some(template) = template {
            provisioner["options"] = json!({"x509": {"template": template}});
        }
        let configuration = json!({
            "root": path("root.crt"), "crt": path("ca.crt"), "key": path("ca.key"), "dnsNames": ["127.0.0.1"],
            "address": format!("127.0.0.1:{}", self.port), "authority": {"provisioners": [provisioner]},
        });
        std::fs::write(path("ca.json"), configuration.to_string()).expect("write");
        let mut command = Command::new(&self.program);
        command.arg(path("ca.json")).env("STEPPATH", &self.directory);
        let ca = Process::spawn("step-ca", &mut command, &self.directory);
        eventually("step-ca to listen", LIMIT, || async {
            TcpStream::connect(("127.0.0.1", self.port)).map(drop).map_err(|e| format!("{e}: {}", ca.log_end()))
        })
        .await;
        self.ca = Some(ca);
    }

    async fn refer(&self, api: &ApiServer, namespace: &str) {
        let key: Value = serde_json::from_str(PROVISIONER).expect("JSON");
        let items = [
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "step", "namespace": namespace},
                "stringData": {"password": PASSWORD},
            }),
            json!({
                "apiVersion": "certmanager.step.sm/v1beta1", "kind": "StepIssuer",
                "metadata": {"name": ISSUER, "namespace": namespace},
                "spec": {
                    "url": format!("https://127.0.0.1:{}", self.port), "caBundle": STANDARD.encode(&self.root.pem),
                    "provisioner": {
                        "name": ISSUER, "kid": key["kid"], "passwordRef": {"name": "step", "key": "password"},
                    },
                },
            }),
        ];
        api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
        eventually("step-issuer to take the StepIssuer", LIMIT, || async {
            let text = api.kubectl(&["get", "stepissuer", ISSUER, "-n", namespace, "-o", "json"]);
            let issuer: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let conditions = issuer["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            if ready { Ok(()) } else { Err(format!("{conditions:?}: {}", self.issuer.log_end())) }
        })
        .await;
    }
}
