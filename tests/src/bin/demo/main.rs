//! `make demo`: a three-member etcd under load changes every certificate before one's eyes, with no cluster.
//!
//! The programs of a cluster run as local processes: `admit` gets the pods as AdmissionReviews over TLS, and the containers of
//! the injected pods are started, `etcd-tls-init`, the sidecar and etcd. `standalone` takes the API server's place and judges
//! the requests by the same rules from the same pods. Certificates live for seconds. A client writes and watches all the time;
//! a write that fails fails the demo. Its course is written as a page beside the programs, or to the file that
//! `ETCD_TLS_DEMO_PAGE` names. `ETCD_TLS_DEMO_TARGETS` names a file to write where Prometheus can scrape the demo, in the form of
//! its `file_sd_configs`.

mod account;
mod cluster;
mod manifests;
mod timeline;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use tests::{
    etcd::EtcdBinary,
    workload::{Options, Workload},
};

use account::Account;
use cluster::Cluster;
use timeline::Timeline;

/// The life of a certificate here.
const LIFE: Duration = Duration::from_secs(12);
/// How long the leaves are watched.
const LEAVES: Duration = Duration::from_secs(25);

/// A line of the demo's, with the time since its start.
#[macro_export]
macro_rules! say {
    ($start:expr, $($text:tt)*) => {{
        #[allow(clippy::print_stdout)]
        {
            println!("[{:5.1} s] {}", $start.elapsed().as_secs_f64(), format_args!($($text)*));
        }
    }};
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("demo: {e}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo; whether it held what it says.
async fn run() -> Result<bool, String> {
    let start = Instant::now();
    let Some(etcd) = EtcdBinary::find() else {
        return Err("no etcd: apt-get install etcd-server etcd-client, or ETCD=/path/to/etcd".into());
    };
    say!(start, "etcd {}; certificates live {} s", etcd.version, LIFE.as_secs());
    let mut cluster = Cluster::start(&etcd, LIFE, start).await?;
    if let Some(file) = env::var_os("ETCD_TLS_DEMO_TARGETS").map(PathBuf::from) {
        // Prometheus never reads half of it.
        let half = file.with_extension("half");
        fs::write(&half, cluster.targets().to_string())
            .and_then(|()| fs::rename(&half, &file))
            .map_err(|e| format!("{}: {e}", file.display()))?;
    }

    let workload = Workload::start(Options::new(cluster.client_urls(), &cluster.client_files()));
    let mut account = Account::new(Timeline::new(start));
    cluster.watch(&mut account, &workload, LEAVES).await?;
    cluster.change_authorities(&mut account, &workload).await?;
    let report = workload.stop().await.map_err(|e| format!("the account: {e}"))?;
    let good = account.print(&report);
    let page = page();
    fs::create_dir_all(page.parent().unwrap_or_else(|| Path::new(".")))
        .and_then(|()| fs::write(&page, account.page(&report, good)))
        .map_err(|e| format!("{}: {e}", page.display()))?;
    say!(start, "the course, to open in a browser: {}", page.display());
    say!(start, "{}", if good { "done: no write failed, none was lost" } else { "FAILED" });
    Ok(good)
}

/// Where the page is written.
fn page() -> PathBuf {
    env::var_os("ETCD_TLS_DEMO_PAGE").map_or_else(
        || {
            let program = env::current_exe().unwrap_or_default();
            program.ancestors().nth(2).unwrap_or_else(|| Path::new(".")).join("demo").join("index.html")
        },
        PathBuf::from,
    )
}
