//! The standalone signer: certificates a second against openssl in a loop and against the crypto library's bare
//! signatures, `request` from its start to its file, and what ten thousand stored requests weigh.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
        RsaKeyPair, UnparsedPublicKey,
    },
};
use bytes::Bytes;
use etcd_tls_contract::{csr::PrivateKey, encoding::hex, identity, key::KeyAlgorithm, role::Role, san::Sans};
use etcd_tls_webhook::ca::authority::Authority;
use futures::future::join_all;
use hyper::StatusCode;
use rustls::ClientConfig;
use serde_json::json;
use tests::{
    pki::{Ca, LeafOptions, client_config},
    ports,
    process::{Process, binary, which},
    temp::TempDir,
};

use crate::{
    asks::{CSRS, csr},
    report::Report,
    stats::{cpu, median, memory, ms, percentile},
    wire::{Call, Wire},
};

const CONNECTIONS: usize = 64;
const TURNS: usize = 3;
const TURN: Duration = Duration::from_secs(2);
/// Requests after which the memory is looked at.
const STORED: usize = 10_000;
const STORED_LIMIT: Duration = Duration::from_secs(120);
/// The size of a leaf's signed part.
const MESSAGE: [u8; 500] = [7; 500];
const REQUESTS: usize = 20;
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const SIGNER: &str = "peer.etcd-tls.dev/kube-system.etcd";
const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    for (algorithm, name) in [(KeyAlgorithm::EcdsaP256, "ECDSA P-256"), (KeyAlgorithm::Rsa2048, "RSA-2048")] {
        let signer = Signer::start(algorithm).await?;
        signer.rates(report, name).await?;
        if algorithm == KeyAlgorithm::EcdsaP256 {
            signer.request(report).await?;
        }
    }
    stored(report).await
}

/// A running `standalone` that approves by itself what the bench asks.
pub(crate) struct Signer {
    process: Process,
    address: SocketAddr,
    config: Arc<ClientConfig>,
    token: Arc<str>,
    authority: Authority,
    /// One request's PKCS#10, PEM.
    pem: String,
    directory: TempDir,
}

impl Signer {
    pub(crate) async fn start(algorithm: KeyAlgorithm) -> Result<Self, String> {
        let directory = TempDir::new("bench-standalone");
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let year = Duration::from_secs(365 * 24 * 3600);
        let authority = Authority::generate("bench CA", algorithm, year, SystemTime::now()).map_err(|e| text(&e))?;
        directory.write("ca.crt", authority.certificate_pem());
        directory.write("ca.key", authority.key_pem().as_bytes());
        let serving = Ca::new("bench");
        serving.write_role(&directory.join("serving"), &LeafOptions::default());
        directory.write("serving/ca.crt", &serving.pem);
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|e| text(&e))?;
        let token = hex(&random);
        directory.write("tokens.csv", format!("{token},bench,1,\"bench\"\n"));

        let address = SocketAddr::from(([127, 0, 0, 1], ports::loopback()));
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["standalone", "--address", &address.to_string()]);
        for (flag, file) in [
            ("--cacrt", "ca.crt"),
            ("--cakey", "ca.key"),
            ("--servcrt", "serving/tls.crt"),
            ("--servkey", "serving/tls.key"),
            ("--token-auth-file", "tokens.csv"),
        ] {
            command.arg(flag).arg(directory.join(file));
        }
        command.arg("--csrdir").arg(directory.dir("requests"));
        command.args(["--approve-group", "bench=peer:10.0.0.0/8", "--rate-limit", "0", "--max-requests", "200000"]);
        // All are of one token and one host.
        command.args(["--certificates-per-name", "200000", "--certificates-per-user", "200000"]);
        command.args(["--max-certificates", "200000"]);
        let process = Process::spawn("standalone", &mut command, directory.path());
        let config = client_config(&serving.pem, None);
        Wire::open_when_up(address, &config).await?;
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| text(&e))?;
        let sans = "10.0.0.1".parse::<Sans>().map_err(|e| e.to_string())?;
        let pem = key.request(Role::Peer.organization(), "system:etcd-peer:host-1", &sans).map_err(|e| text(&e))?;
        Ok(Self { process, address, config, token: token.into(), authority, pem, directory })
    }

    fn ask(&self, name: &str) -> Call {
        debug_assert_eq!(identity::usages(Role::Peer).len(), USAGES.len());
        Call::post(CSRS, csr(name, SIGNER, &USAGES, &self.pem)).token(&self.token)
    }

    /// Asks on every wire until `time` is over or there are `most`; how many certificates came.
    async fn ask_all(&self, wires: &mut [Wire], prefix: &str, time: Duration, most: usize) -> Result<usize, String> {
        let began = Instant::now();
        let each = most.div_ceil(wires.len());
        let counts = join_all(wires.iter_mut().enumerate().map(|(w, wire)| async move {
            let mut count = 0;
            while began.elapsed() < time && count < each {
                let (status, body) = wire.call(&self.ask(&format!("{prefix}-{w}-{count}"))).await?;
                if status != StatusCode::CREATED || !contains(&body, b"\"certificate\"") {
                    return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
                }
                count += 1;
            }
            Ok(count)
        }))
        .await;
        counts.into_iter().sum()
    }

    async fn rates(&self, report: &mut Report, name: &str) -> Result<(), String> {
        let mut wires = Wire::open_many(CONNECTIONS, self.address, &self.config).await?;
        self.ask_all(&mut wires, "warm", TURN / 2, usize::MAX).await?;
        let openssl = which("openssl");
        self.directory.write("request.pem", &self.pem);
        let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let (mut costs, mut to_openssl, mut to_bare) = (Vec::new(), Vec::new(), Vec::new());
        let (mut with_verification, mut most) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let (began, before) = (Instant::now(), cpu(self.process.id()));
            let count = self.ask_all(&mut wires, &format!("turn{turn}"), TURN, usize::MAX).await?;
            let rate = count as f64 / began.elapsed().as_secs_f64();
            costs.push((cpu(self.process.id()) - before) * 1e6 / count as f64);
            ours.push(rate);
            if let Some(openssl) = &openssl {
                let rate_of_openssl = self.openssl(openssl)?;
                theirs.push(rate_of_openssl);
                to_openssl.push(rate / rate_of_openssl);
            }
            let signatures = self.bare_signatures().await?;
            bare.push(signatures);
            to_bare.push(rate / signatures);
            let both = 1.0 / (1.0 / signatures + 1.0 / Self::bare_verifications().await?);
            with_verification.push(both);
            most.push(both / signatures);
        }
        let rate = median(&ours);
        report.plain(format!("certificates, CA of {name}"), format!("{rate:.0}/s"));
        report.plain(format!("CPU of the signer for one, CA of {name}"), format!("{:.0} µs", median(&costs)));
        if openssl.is_some() {
            report.plain(
                format!("openssl x509 -req in a loop, {name}"),
                format!("{:.0}/s; ours is {:.1} times that", median(&theirs), median(&to_openssl)),
            );
        } else {
            report.skip("openssl in a loop", "no openssl", "apt-get install openssl");
        }
        report.plain(format!("bare signatures, all cores, {name}"), format!("{:.0}/s", median(&bare)));
        // A request's own signature proves that its key is the requester's: nobody may sign without having verified it.
        report.plain(
            format!("the same with a verification of the request before each, {name}"),
            format!(
                "{:.0}/s, which is {:.2} of the bare ones: there cannot be more",
                median(&with_verification),
                median(&most)
            ),
        );
        let ratio = median(&to_bare);
        report.judged(
            format!("certificates against bare signatures, {name}"),
            format!("{ratio:.2}"),
            ">= 0.33",
            ratio >= 1.0 / 3.0,
        );
        Ok(())
    }

    fn openssl(&self, openssl: &PathBuf) -> Result<f64, String> {
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < TURN {
            let mut command = Command::new(openssl);
            command.args(["x509", "-req", "-days", "1", "-set_serial", &(count + 1).to_string()]);
            for (flag, file) in
                [("-in", "request.pem"), ("-CA", "ca.crt"), ("-CAkey", "ca.key"), ("-out", "openssl.crt")]
            {
                command.arg(flag).arg(self.directory.join(file));
            }
            let output = command.output().map_err(|e| format!("openssl: {e}"))?;
            if !output.status.success() {
                return Err(format!("openssl: {}", String::from_utf8_lossy(&output.stderr)));
            }
            count += 1;
        }
        Ok(f64::from(count) / began.elapsed().as_secs_f64())
    }

    /// Signatures a second by the CA's key, on every core at once.
    async fn bare_signatures(&self) -> Result<f64, String> {
        let key = PrivateKey::from_pem(&self.authority.key_pem()).map_err(|e| e.to_string())?;
        let der = key.to_pkcs8_der();
        let random = SystemRandom::new();
        let ecdsa = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).ok();
        let rsa = RsaKeyPair::from_pkcs8(&der).ok();
        on_all_cores(move || match (&ecdsa, &rsa) {
            (Some(key), _) => key.sign(&random, &MESSAGE).map(drop).map_err(|e| e.to_string()),
            (None, Some(key)) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, &MESSAGE, &mut out).map_err(|e| e.to_string())
            }
            (None, None) => Err("the CA's key is of no known kind".to_owned()),
        })
        .await
    }

    /// Verifications a second of a signature like the requests' own, on every core at once.
    async fn bare_verifications() -> Result<f64, String> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|e| e.to_string())?;
        let signature = key.sign(&SystemRandom::new(), &MESSAGE).map_err(|e| e.to_string())?;
        let public_key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
        on_all_cores(move || public_key.verify(&MESSAGE, signature.as_ref()).map_err(|e| e.to_string())).await
    }

    /// The kubeconfig of a host.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": self.directory.join("serving/ca.crt"),
            }}],
            "users": [{"name": "bench", "user": {"token": &*self.token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        });
        self.directory.write("kubeconfig", kubeconfig.to_string())
    }

    /// `request`, from its start to its file, in a directory of its own; milliseconds.
    pub(crate) async fn request_once(&self, kubeconfig: &Path, n: usize) -> Result<f64, String> {
        let assets = self.directory.dir(&format!("assets-{n}"));
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(["request", "--name", "host-2", "--roles", "peer", "--ipaddrs", "10.0.0.2"]);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--assetsdir").arg(&assets);
        command.arg("--cacrt").arg(self.directory.join("ca.crt"));
        let file = assets.join("peer/tls.crt");
        let began = Instant::now();
        let mut process = Process::spawn("request", &mut command, self.directory.path());
        while !file.exists() {
            if began.elapsed() > REQUEST_LIMIT || process.exited().is_some_and(|s| !s.success()) {
                return Err(format!("request left no file:\n{}", process.log()));
            }
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_micros(300)));
        }
        let took = ms(began.elapsed());
        process.wait(REQUEST_LIMIT).await;
        Ok(took)
    }

    async fn request(&self, report: &mut Report) -> Result<(), String> {
        let kubeconfig = self.kubeconfig();
        let mut values = Vec::new();
        for n in 0..=REQUESTS {
            let took = self.request_once(&kubeconfig, n).await?;
            // The first one warms the files' cache.
            if n > 0 {
                values.push(took);
            }
        }
        let (p50, p90) = (median(&values), percentile(&values, 0.9));
        report.judged("request, start to file, p50 (p90)", format!("{p50:.0} ms ({p90:.0} ms)"), "< 50 ms", p50 < 50.0);
        Ok(())
    }
}

/// How often a second `work` is done, one after the other on each core.
async fn on_all_cores(work: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Result<f64, String> {
    let work = Arc::new(work);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let began = Instant::now();
    let threads = (0..cores).map(|_| {
        let work = Arc::clone(&work);
        tokio::task::spawn_blocking(move || {
            let mut count = 0_u64;
            while began.elapsed() < TURN {
                work()?;
                count += 1;
            }
            Ok::<u64, String>(count)
        })
    });
    let mut total = 0;
    for thread in join_all(threads).await {
        total += thread.map_err(|e| e.to_string())??;
    }
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

/// A signer's memory with nothing stored, and with many requests.
async fn stored(report: &mut Report) -> Result<(), String> {
    let signer = Signer::start(KeyAlgorithm::EcdsaP256).await?;
    let empty = memory(signer.process.id());
    let mut wires = Wire::open_many(CONNECTIONS, signer.address, &signer.config).await?;
    let count = signer.ask_all(&mut wires, "stored", STORED_LIMIT, STORED).await?;
    drop(wires);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let full = memory(signer.process.id());
    report.plain("standalone at rest, resident (anonymous)", both(empty.resident, empty.anonymous));
    report.plain(format!("standalone with {count} stored requests"), both(full.resident, full.anonymous));
    Ok(())
}

fn both(resident: f64, anonymous: f64) -> String {
    format!("{resident:.1} MiB ({anonymous:.1} MiB)")
}

fn contains(body: &Bytes, needle: &[u8]) -> bool {
    body.windows(needle.len()).any(|window| window == needle)
}
