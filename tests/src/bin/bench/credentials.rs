//! Pod certificates as one file (`credentialBundle`) and as two, behind a real etcd: which handshakes fail while the volume changes,
//! and what each costs. The volume is replaced as kubelet does it, by the rename of one link.

use std::{
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tests::{
    etcd::{EtcdBinary, EtcdCluster, MemberTls},
    etcd_client::served_serial,
    pki::{Ca, Leaf, LeafOptions},
    temp::TempDir,
};
use tokio::time::sleep;

use crate::{
    report::Report,
    stats::{median, memory, ms},
};

/// Turns of each form, at rest and while the volume changes; how long each is.
const TURNS: usize = 6;
const TURN: Duration = Duration::from_secs(4);
/// Between two changes: kubelet makes one in hours, so that a handshake seldom meets one.
const CHANGES: Duration = Duration::from_millis(1);
/// Certificates that take turns.
const LEAVES: usize = 32;
const FORMS: [&str; 2] = ["one file", "two files"];

/// A volume of kubelet's with one of the forms.
struct Volume {
    directory: PathBuf,
    one: bool,
    generation: usize,
}

impl Volume {
    /// etcd gets the names `tls.crt` and `tls.key` for its two options; with one file both lead to it.
    fn new(directory: PathBuf, one: bool, ca: &Ca) -> std::io::Result<Self> {
        fs::create_dir_all(&directory)?;
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{}", if one { "bundle.pem" } else { name }), directory.join(name))?;
        }
        fs::write(directory.join("ca.crt"), &ca.pem)?;
        Ok(Self { directory, one, generation: 0 })
    }

    fn replace(&mut self, leaf: &Leaf) -> std::io::Result<()> {
        let of = |generation: usize| format!("..{generation}");
        let new = self.directory.join(of(self.generation + 1));
        fs::create_dir(&new)?;
        if self.one {
            fs::write(new.join("bundle.pem"), format!("{}{}", leaf.key, leaf.cert))?;
        } else {
            fs::write(new.join("tls.crt"), &leaf.cert)?;
            fs::write(new.join("tls.key"), &leaf.key)?;
        }
        let link = self.directory.join("..data_tmp");
        symlink(of(self.generation + 1), &link)?;
        fs::rename(link, self.directory.join("..data"))?;
        match fs::remove_dir_all(self.directory.join(of(self.generation))) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.generation += 1;
        Ok(())
    }
}

/// What the handshakes of one form were.
#[derive(Default)]
struct Seen {
    whole: Vec<f64>,
    torn: usize,
    changes: usize,
}

impl Seen {
    async fn handshake(&mut self, url: &str, client: &Path) {
        let began = Instant::now();
        match served_serial(url, client).await {
            Ok(_) => self.whole.push(ms(began.elapsed())),
            Err(_) => self.torn += 1,
        }
    }
}

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let Some(etcd) = EtcdBinary::find() else {
        report.skip(
            "pod certificates as one file and as two",
            "no etcd",
            "apt-get install etcd-server, or ETCD=<path> make bench SECTIONS=credentials",
        );
        return Ok(());
    };
    let failed = |error: std::io::Error| error.to_string();
    let (files, ca) = (TempDir::new("credentials"), Ca::new("credentials"));
    let leaves: Vec<Leaf> = (0..LEAVES).map(|_| ca.leaf(&LeafOptions::default())).collect();
    let client = files.join("client");
    ca.write_role(&client, &LeafOptions::default());
    let (mut volumes, mut clusters) = (Vec::new(), Vec::new());
    for form in FORMS {
        let mut volume = Volume::new(files.join(form.replace(' ', "-")), form == FORMS[0], &ca).map_err(failed)?;
        volume.replace(&leaves[0]).map_err(failed)?;
        let server = Some(volume.directory.clone());
        let mut cluster = EtcdCluster::at(&etcd, [Ipv4Addr::LOCALHOST.into()])
            .with_tls(|_| MemberTls { server: server.clone(), peer: None });
        cluster.start().await;
        volumes.push(volume);
        clusters.push(cluster);
    }
    let [mut rest, mut busy] = [0, 1].map(|_| [Seen::default(), Seen::default()]);
    for _ in 0..TURNS {
        for form in 0..FORMS.len() {
            let url = clusters[form].members[0].client_url();
            let until = Instant::now() + TURN;
            while Instant::now() < until {
                rest[form].handshake(&url, &client).await;
            }
            let until = Instant::now() + TURN;
            let (seen, volume) = (&mut busy[form], &mut volumes[form]);
            let mut changes = 0;
            let shakes = async {
                while Instant::now() < until {
                    seen.handshake(&url, &client).await;
                }
            };
            let changing = async {
                while Instant::now() < until {
                    volume.replace(&leaves[changes % LEAVES])?;
                    changes += 1;
                    sleep(CHANGES).await;
                }
                Ok::<(), std::io::Error>(())
            };
            let ((), changed) = tokio::join!(shakes, changing);
            changed.map_err(failed)?;
            busy[form].changes += changes;
        }
    }
    for (form, name) in FORMS.into_iter().enumerate() {
        let Seen { whole, torn, changes } = &busy[form];
        let all = whole.len() + torn;
        report.plain(
            format!("{name}: failed handshakes while the volume changes"),
            format!("{torn} of {all}, {changes} changes"),
        );
        report.plain(format!("{name}: handshake at rest, median"), format!("{:.2} ms", median(&rest[form].whole)));
        let held = memory(clusters[form].members[0].process().id());
        report.plain(
            format!("{name}: memory of etcd"),
            format!("{:.1} MiB, {:.1} its own", held.resident, held.anonymous),
        );
    }
    Ok(())
}
