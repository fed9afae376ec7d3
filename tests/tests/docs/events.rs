//! docs/events.md, made from the list of reasons: `UPDATE_DOCS=1 cargo test -p tests --test docs events` writes it anew. No Event has another
//! reason: nothing else than the list makes one.

use std::{fmt::Write as _, fs};

use etcd_tls_webhook::controller::events::reasons;
use tests::repository;

#[test]
fn the_reference_of_events_is_current() {
    let mut page = "# Events\n\n`approve` and `sign` write Events for people. `kubectl describe` shows them with their object for an hour; \
                    `kubectl get events -A` lists all of\nthem, with the reporting controllers `etcd-tls.dev/approve` and `etcd-tls.dev/sign`. \
                    A repeated message makes no second Event. An object\ngets 20 Events at once at most, then one in 30 s. If the API server \
                    does not accept an Event, the process tries again for some ten seconds, and\nthen drops it. The sidecar and `admit` write none.\n\n\
                    This page is made from the sources.\n\n| reason | type | object | by | meaning |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for reason in reasons::ALL {
        let (name, kind, object) = (reason.name(), reason.kind(), reason.object());
        let _ = writeln!(page, "| `{name}` | {kind} | {object} | {} | {} |", reason.by(), reason.meaning());
    }
    let path = repository().join("docs/events.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("write docs/events.md");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|text| text == page),
        "docs/events.md is not current: UPDATE_DOCS=1 writes it"
    );
}
