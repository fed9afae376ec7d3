//! `make demo`, the page that it writes, in a browser, and the shipped dashboard in a real Prometheus that the demo feeds.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::json;
use tests::{
    process::{binary, which},
    prometheus::{Prometheus, document, queries},
    temp::TempDir,
    tier,
};

/// A page in a browser: its document after loading, and a picture.
fn opened(browser: &Path, page: &Path, picture: &Path) -> String {
    let profile = TempDir::new("browser");
    let start = |what: &str| {
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,985"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(what).arg(format!("file://{}", page.display()));
        let output = command.output().expect("run the browser");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    start(&format!("--screenshot={}", picture.display()));
    start("--dump-dom")
}

/// The dashboard's panels that the demo has nothing for: its certificates come from `standalone`, and CAs are `sign`'s.
const OF_SIGN: [&str; 2] = ["Authorities", "Certificates issued and requests refused"];

/// Asks the queries of the dashboard until the demo has ended. Returns those that never had a number.
async fn unanswered(prometheus: &Prometheus, over: &AtomicBool) -> Vec<(String, String)> {
    let mut left = queries();
    while !over.load(Ordering::SeqCst) {
        let mut still = Vec::new();
        for (title, query) in left {
            if prometheus.number(&query).await.is_err() {
                still.push((title, query));
            }
        }
        left = still;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_certificate_and_the_ca_change_under_load_and_the_page_shows_it() {
    if tier::etcd().is_none() {
        return;
    }
    let dir = TempDir::new("demo-page");
    let page = dir.join("page").join("index.html");
    let mut demo = tokio::process::Command::new(binary("demo"));
    demo.env("ETCD_TLS_DEMO_PAGE", &page).env("ETCD_TLS_DEMO_TARGETS", dir.join("targets.json")).kill_on_drop(true);
    let scraped = json!({"job_name": "demo", "file_sd_configs": [{"files": [dir.join("targets.json")], "refresh_interval": "1s"}]});
    let prometheus = which("prometheus").filter(|_| which("curl").is_some());
    let prometheus =
        prometheus.map(|program| Prometheus::start(&program, &dir, 1, vec![scraped], &document("alerts.yaml")["spec"]));
    let over = AtomicBool::new(false);
    let run = async {
        let output = demo.output().await.expect("run the demo");
        over.store(true, Ordering::SeqCst);
        output
    };
    let asked = async {
        match &prometheus {
            Some(prometheus) => Some(unanswered(prometheus, &over).await),
            None => None,
        }
    };
    let (output, left) = tokio::join!(run, asked);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("done: no write failed, none was lost"), "{text}");
    assert!(text.contains(&page.display().to_string()), "it says where the page is: {text}");

    if let Some(left) = left {
        let titles: BTreeSet<&str> = left.iter().map(|(title, _)| title.as_str()).collect();
        assert_eq!(titles, OF_SIGN.into(), "no number of the demo: {left:?}");
        assert!(left.iter().all(|(_, query)| query.contains("etcd_tls_sign_")), "{left:?}");
    } else {
        tier::skip_special("no prometheus, or no curl", "apt-get install prometheus curl");
    }

    let html = fs::read_to_string(&page).expect("the page");
    assert!(!html.contains("http") && !html.contains("<script"), "it needs nothing from elsewhere");
    assert!(!html.contains("PRIVATE KEY"), "no key");
    for lane in ["etcd-0 peer", "etcd-0 server", "etcd-1 peer", "etcd-1 server", "etcd-2 peer", "etcd-2 server"] {
        let bars = html.matches(&format!("<title>{lane}: serial ")).count();
        assert!(bars >= 3, "{lane}: {bars} certificates");
        let pod = &lane[..6];
        assert!(html.contains(&format!("<title>{pod}: etcd restarted")), "{pod}: no restart for the new CA");
    }
    assert!(html.contains("<tr><th>writes failed</th><td>0</td></tr>"), "{html}");

    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(which) else {
        return tier::skip_special("no browser", "apt-get install chromium");
    };
    let picture: PathBuf = dir.join("page.png");
    let dom = opened(&browser, &page, &picture);
    for part in ["id=\"certificates\"", "id=\"writes\"", "id=\"longest\"", "no write failed, none was lost"] {
        assert!(dom.contains(part), "{part}");
    }
    let picture = fs::read(&picture).expect("a picture");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "an empty picture: {} bytes", picture.len());
    if let Some(keep) = std::env::var_os("ETCD_TLS_DEMO_PICTURE") {
        fs::write(keep, picture).expect("keep the picture");
    }
}
