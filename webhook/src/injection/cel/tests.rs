#![allow(clippy::unwrap_used)]

use clap::Args as _;
use etcd_tls_contract::args::PodArgs;

use super::*;

fn config() -> Config {
    Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() }
}

/// A new argument of the injected containers has to have a form here, or a reason why its pods are refused.
#[test]
fn every_argument_of_the_sidecar_has_a_form() {
    let command = PodArgs::augment_args(clap::Command::new("x"));
    let not_injected = [
        "issuer",
        "trust-of-issuer",
        "metrics-url",
        "liveness-url",
        "dir",
        "projected-dir",
        "trust-dir",
        "token-dir",
        "restart-pace",
    ];
    let words = Template::of(&config()).unwrap().words().unwrap();
    for flag in command.get_arguments().filter_map(|a| a.get_long()).filter(|f| !["help", "version"].contains(f)) {
        let written = words.contains(&format!("'--{flag}=' + ")) || words.contains(&format!("'--{flag}'"));
        assert_eq!(written, !not_injected.contains(&flag), "--{flag}");
    }
}

#[test]
fn no_placeholder_is_left_and_settings_are_constants() {
    let config = Config {
        sidecar_image: "example.com/it's:1".to_owned(),
        image_pull_policy: Some("Always".to_owned()),
        pull_secrets: vec!["pull".to_owned()],
        user: Some(4711),
        ..config()
    };
    let text = Value::from(policies(&config, Image::Constant).unwrap()).to_string();
    for placeholder in ["zz", "6499", "1001m", "1002Mi", "1003Mi", "2001m", "2002Mi", "2003Mi"] {
        assert!(!text.contains(placeholder), "{placeholder}");
    }
    for constant in ["'example.com/it\\\\'s:1'", "'imagePullPolicy': dyn('Always')", "['pull']", "4711"] {
        assert!(text.contains(constant), "{constant}");
    }
    let host = HostPaths { kubeconfig: "/k".to_owned(), bootstrap_kubeconfig: None, directory: "/d".to_owned() };
    assert!(
        policies(&Config { host: Some(host), ..config }, Image::Constant).unwrap_err().to_string().contains("--static")
    );
}

use crate::injection::HostPaths;
