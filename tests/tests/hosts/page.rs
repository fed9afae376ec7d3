//! docs/standalone.md: its commands, and the sentences on the etcd of a host.

use std::{fs, net::Ipv4Addr, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use etcd_tls_contract::role::Role;
use tests::{
    etcd::EtcdCluster,
    etcd_client::{EtcdClient, takes},
    eventually, pages,
    pki::{Ca, LeafOptions},
    ports,
    process::{Process, binary, run, which},
    repository,
    signer::{BOOTSTRAP, LIMIT, Signer, V1, mode, request, revoke, sans},
    temp::TempDir,
    tier,
};

const PAGE: &str = "standalone.md";
const LIFE: Duration = Duration::from_secs(3600);

/// Nothing names etcd's process, so nobody restarts it for a new CA, and the page's commands show that a restart is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_no_option_names_waits_for_somebody_to_restart_it() {
    let Some(etcd) = tier::etcd() else { return };
    for program in ["curl", "openssl"] {
        if which(program).is_none() {
            return tier::skip_special(&format!("no {program} in PATH"), "install it");
        }
    }
    let signer = Signer::of_hosts(LIFE).await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let bundle = signer.dir.write("trust/ca.crt", &signer.ca.pem);
    let mut cluster = signer.etcd(EtcdCluster::new(&etcd, 1));
    let member = &cluster.members[0];
    let (files, port) = (signer.dir.join(&member.name), ports::loopback());
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["run", "--roles=peer,server", "--restart-pace=1s", "--name", &member.name]);
    command.arg(format!("--ipaddrs={},127.0.0.1", member.address)).arg(format!("--admin-port={port}"));
    command.arg(format!("--client-url={}", member.client_url())).arg(format!("--peer-url={}", member.peer_url()));
    command.arg("--cacrt").arg(&bundle).arg("--dir").arg(&files);
    command.arg("--bootstrap-kubeconfig").arg(&bootstrap).arg("--kubeconfig").arg(signer.dir.join("kubeconfig"));
    let sidecar = Process::spawn("sidecar", &mut command, signer.dir.path());
    eventually("the first certificates", LIMIT, || async {
        if files.join("server/tls.crt").exists() { Ok(()) } else { Err(sidecar.log_end()) }
    })
    .await;
    cluster.start().await;

    let shell = |line: &str| pages::bash(signer.dir.path(), &pages::path(&[]), None, line);
    let asks = pages::inline(PAGE, "curl -s 127.0.0.1:9179/metrics").replace("9179", &port.to_string());
    let due = async |due: bool| {
        eventually(&format!("a restart is due: {due}"), LIMIT, || async {
            let said = shell(&asks)?;
            let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("etcd_tls_restart_due{")).collect();
            let is = |line: &&str| line.ends_with(if due { " 1" } else { " 0" });
            if !lines.is_empty() && lines.iter().all(is) { Ok(()) } else { Err(said) }
        })
        .await;
    };
    due(false).await;
    let next = Ca::new("the next etcd CA");
    let both = signer.dir.write("trust/both", format!("{}{}", signer.ca.pem, next.pem));
    fs::rename(both, &bundle).expect("rename");
    due(true).await;
    // Time in which a sidecar that may restart etcd has done it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    due(true).await;
    let member = &mut cluster.members[0];
    assert!(member.process().running(), "nobody restarts it: {}", sidecar.log_end());
    member.stop().await;
    member.spawn();
    member.healthy(LIMIT).await;
    due(false).await;

    let issuer = pages::inline(PAGE, "openssl x509 -noout -issuer");
    let said = shell(&issuer.replace("/var/lib/etcd-tls", &files.display().to_string())).expect("an issuer");
    assert!(said.contains("etcd CA"), "{said}");
}

/// etcd under the variables of the drop-in: with `https://` URLs by flags it has TLS; beside a config file, or with `http://` URLs, the
/// variables mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_takes_the_drop_in_with_flags_and_not_with_a_config_file() {
    let Some(etcd) = tier::etcd() else { return };
    let signer = Signer::of_hosts(LIFE).await;
    let dir = TempDir::new("drop-in");
    let assets = dir.join("assets");
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--name=m1", "--roles=peer,server", "--ipaddrs=127.0.0.1", "--timeout=60s"]);
    command.arg("--assetsdir").arg(&assets).arg("--kubeconfig").arg(signer.kubeconfig("kubeconfig", BOOTSTRAP));
    // Its bundle: this signer publishes it.
    run(&mut command);

    let drop_in = fs::read_to_string(repository().join("manifests/host/etcd.service.d/etcd-tls.conf")).expect("read");
    let environment: Vec<(String, String)> = drop_in
        .lines()
        .filter_map(|line| line.strip_prefix("Environment=")?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("/var/lib/etcd-tls", &assets.display().to_string())))
        .collect();
    assert_eq!(environment.len(), 10, "{environment:?}");
    let [client, peer, metrics] = [(); 3].map(|()| ports::free(Ipv4Addr::LOCALHOST));
    let url = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
    let options = |scheme: &str| {
        let data = dir.join(format!("data-{}", ports::loopback())).display().to_string();
        [
            ("name", "m1".to_owned()),
            ("data-dir", data),
            ("listen-client-urls", url(scheme, client)),
            ("advertise-client-urls", url(scheme, client)),
            ("listen-peer-urls", url(scheme, peer)),
            ("initial-advertise-peer-urls", url(scheme, peer)),
            ("initial-cluster", format!("m1={}", url(scheme, peer))),
            ("listen-metrics-urls", url("http", metrics)),
        ]
    };
    let start = |arguments: &[String]| {
        let mut command = Command::new(&etcd.etcd);
        command.args(arguments).envs(environment.iter().map(|(key, value)| (key, value)));
        Process::spawn("etcd", &mut command, dir.path())
    };
    let flags = |scheme: &str| options(scheme).map(|(key, value)| format!("--{key}={value}"));
    let file = |scheme: &str| {
        let text: String = options(scheme).iter().map(|(key, value)| format!("{key}: \"{value}\"\n")).collect();
        [format!("--config-file={}", dir.write(format!("{scheme}.yaml"), text).display())]
    };
    let healthy = async |etcd: &Process, url: &str| {
        eventually("etcd", LIMIT, || async {
            EtcdClient::plain().healthy(url).await.map_err(|error| format!("{error}: {}", etcd.log_end()))
        })
        .await;
    };

    let mut running = start(&flags("https"));
    healthy(&running, &url("http", metrics)).await;
    let stranger = dir.join("stranger");
    Ca::new("another CA").write_role(&stranger, &LeafOptions::default());
    fs::copy(assets.join("server/ca.crt"), stranger.join("ca.crt")).expect("copy");
    for (role, port) in [("server", client), ("peer", peer)] {
        let url = url("https", port);
        assert!(takes(&url, &assets.join(role)).await, "{role}: {}", running.log_end());
        assert!(!takes(&url, &stranger).await, "{role}: it asks for a certificate");
    }
    running.terminate(LIMIT).await;

    let mut refused = start(&file("https"));
    assert!(!refused.wait(LIMIT).await.success(), "it has no certificates: {}", refused.log_end());
    for arguments in [file("http").to_vec(), flags("http").to_vec()] {
        let mut plain = start(&arguments);
        healthy(&plain, &url("http", client)).await;
        plain.terminate(LIMIT).await;
    }
}

/// The page says what to edit where a host differs.
#[test]
fn the_units_expect_what_the_page_says() {
    let page = fs::read_to_string(repository().join("docs").join(PAGE)).expect("the page");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let unit = fs::read_to_string(repository().join("manifests/host/etcd-tls-sidecar.service")).expect("a unit");
    for (in_unit, in_page) in [
        ("\nUser=etcd\n", "a user `etcd` that etcd runs as"),
        (" --etcd-unit=etcd.service ", "a unit `etcd.service`"),
        (" --client-url=https://127.0.0.1:2379 ", "etcd at `https://127.0.0.1:2379`"),
    ] {
        assert!(unit.contains(in_unit) && page.contains(in_page), "{in_page}");
    }
}

/// A block that starts units: systemd reads them again first, and what it enables has been installed by then. Nothing is started.
fn enabled(root: &Path, block: &str) {
    let mut lines = block.lines();
    assert_eq!(lines.next(), Some("systemctl daemon-reload"), "{block}");
    let units = lines.next().and_then(|line| line.strip_prefix("systemctl enable --now ")).expect(block);
    for unit in units.split(' ') {
        assert!(
            root.join(format!("etc/systemd/system/{unit}.service")).is_file(),
            "{unit} is not installed yet: {block}"
        );
    }
    if which("systemctl").is_some() {
        run(Command::new("systemctl").arg(format!("--root={}", root.display())).arg("enable").args(units.split(' ')));
    }
}

/// *Hosts under systemd*: the commands that make and copy files leave what the units name, and with the shipped arguments a host gets its
/// certificates from the signer. systemd itself is not run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_the_units_start_a_signer_and_a_host() {
    for program in ["curl", "openssl"] {
        if which(program).is_none() {
            return tier::skip_special(&format!("no {program} in PATH"), "install it");
        }
    }
    let dir = TempDir::new("units-of-hosts");
    symlink(repository().join("manifests"), dir.join("manifests")).expect("link");
    for (place, program) in [("release", "etcd-tls-webhook"), ("sidecar", "etcd-tls-sidecar")] {
        dir.dir(&format!("target/{place}"));
        let built = format!("#!/bin/sh\nexec '{}' \"$@\"\n", binary(program).display());
        dir.write(format!("target/{place}/{program}"), built);
    }
    // The last two by systemd, as the units have it (StateDirectory).
    for place in ["etc/systemd/system", "usr/local/bin", "var/lib/etcd-tls-standalone", "var/lib/etcd-tls"] {
        dir.dir(place);
    }
    let [address, admin] = [(); 2].map(|()| ports::loopback().to_string());
    // This directory in place of `/`, loopback in place of the signer's address, and free ports.
    let here = |text: &str| {
        let root = dir.path().display().to_string();
        let text = ["/etc/etcd-tls", "/etc/systemd", "/usr/local/bin", "/var/lib"]
            .iter()
            .fold(text.to_owned(), |text, place| text.replace(place, &format!("{root}{place}")));
        let text = text.replace("192.0.2.10", "127.0.0.1").replace("[::]", "127.0.0.1");
        text.replace(":6444", &format!(":{address}")).replace(":6445", &format!(":{admin}"))
    };
    let shell = |line: &str| pages::bash(dir.path(), &pages::path(&[]), None, &format!("set -e\n{line}"));
    let (of_signer, of_host) = (pages::blocks(PAGE, "The signer"), pages::blocks(PAGE, "Each host"));
    // The operator's own.
    dir.write(
        "etc/systemd/system/etcd.service",
        "[Service]\nExecStart=/usr/bin/etcd\n[Install]\nWantedBy=multi-user.target\n",
    );
    for block in of_signer.iter().chain(&of_host).filter(|block| !block.contains("etcdctl")) {
        if block.contains("systemctl") {
            enabled(dir.path(), block);
        } else {
            shell(&here(&block.replace("chown etcd:", "chown $(id -un):"))).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    if which("systemctl").is_some() {
        for link in [
            "multi-user.target.wants/etcd-tls-standalone.service",
            "multi-user.target.wants/etcd-tls-sidecar.service",
            "multi-user.target.wants/etcd.service",
            "etcd.service.requires/etcd-tls-request.service",
        ] {
            assert!(dir.join("etc/systemd/system").join(link).is_symlink(), "{link}");
        }
    }
    let etc = dir.join("etc/etcd-tls");
    for (file, expected) in
        [("ca.key", 0o600), ("tokens.csv", 0o600), ("standalone.env", 0o600), ("bootstrap.kubeconfig", 0o400)]
    {
        assert_eq!(mode(&etc.join(file)), expected, "{file}");
    }
    for name in ["etcd-tls-standalone.service", "etcd-tls-sidecar.service", "etcd.service.d/etcd-tls.conf"] {
        assert!(dir.join("etc/systemd/system").join(name).is_file(), "{name}");
    }

    // A unit's command, with the variables of its file.
    let command_of = |unit: &str| {
        let read = |path: &str| here(&fs::read_to_string(dir.join(path)).expect("read"));
        let unit = read(&format!("etc/systemd/system/{unit}"));
        let value = |text: &str, key: &str| {
            text.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).map(str::to_owned)
        };
        let variables = value(&unit, "EnvironmentFile").expect("a file of arguments");
        let variables = here(&fs::read_to_string(variables).expect("the arguments"));
        let start = value(&unit, "ExecStart").expect("a command");
        let words = start.split(' ').flat_map(|word| {
            let text =
                word.strip_prefix('$').map_or_else(|| word.to_owned(), |name| value(&variables, name).expect(name));
            text.split(' ').map(str::to_owned).collect::<Vec<_>>()
        });
        let words: Vec<String> = words.collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    };
    let signer = Process::spawn("signer", &mut command_of("etcd-tls-standalone.service"), dir.path());
    let mut lines = of_signer.iter().flat_map(|block| block.lines());
    let ready = lines.find(|line| line.starts_with("curl ")).expect("a check");
    eventually("the signer is ready", LIMIT, || async {
        match shell(&here(ready))?.as_str() {
            said if said.contains("ok") => Ok(()),
            said => Err(format!("{said}{}", signer.log_end())),
        }
    })
    .await;
    // The unit waits for a year.
    let request = Process::spawn("request", &mut command_of("etcd-tls-request.service"), dir.path());
    let assets = dir.join("var/lib/etcd-tls");
    eventually("the host's files", LIMIT, || async {
        let files = ["kubeconfig", "peer/tls.crt", "peer/ca.crl", "server/tls.key", "server/ca.crt"];
        match files.iter().find(|file| !assets.join(file).is_file()) {
            None => Ok(()),
            Some(file) => Err(format!("{file}: {}{}", request.log_end(), signer.log_end())),
        }
    })
    .await;
}

/// *Approve as a person*.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_with_a_token_approves_and_revokes_by_the_commands_of_the_page() {
    let Some(kubernetes) = tier::kubernetes() else { return };
    if which("openssl").is_none() {
        return tier::skip_special("no openssl in PATH", "install it");
    }
    let signer = Signer::started(&["--admin-group=etcd-operators"]).await;
    let here = signer.dir.dir("anna");
    symlink(signer.dir.join("tokens"), here.join("tokens.csv")).expect("link");
    fs::write(here.join("ca.crt"), &signer.serving.pem).expect("write");
    let shell = |line: &str| pages::bash(&here, &pages::path(&[Path::new(&kubernetes)]), None, line);

    let blocks = pages::blocks(PAGE, "Approve as a person");
    let [set_up, use_it] = &blocks[..] else { panic!("{blocks:?}") };
    let address = format!("https://127.0.0.1:{}", signer.port);
    shell(&set_up.replace("https://127.0.0.1:6444", &address)).expect("a kubeconfig");
    let anna = here.join("anna.kubeconfig");
    assert_eq!(mode(&anna), 0o600);

    let (object, _) = request("waits", Role::Peer, "m1", &sans(&["m1.example.com"], &[]));
    let (code, answer) = signer.ask("POST", V1, BOOTSTRAP, &object);
    assert_eq!(code, 201, "{answer}");
    let use_it = use_it.replace("NAME", "waits");
    // The signer takes the new line within moments.
    let said = eventually("approved", LIMIT, || async { shell(&format!("set -e\n{use_it}")) }).await;
    assert!(said.contains("Pending") && said.contains("/waits approved"), "{said}");
    eventually("issued", LIMIT, || async {
        let (_, found) = signer.ask("GET", &format!("{V1}/waits"), BOOTSTRAP, &serde_json::Value::Null);
        if found["status"]["certificate"].is_string() { Ok(()) } else { Err(found) }
    })
    .await;
    let said = revoke(&anna, &["--user", "system:etcd-peer:m1", "--force"]).expect("she may");
    assert!(said.contains("system:etcd-peer:m1"), "{said}");
}
