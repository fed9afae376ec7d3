//! The golden shapes in a real shell: those that are injected into run without a conflict, and those whose command line is
//! refused end in one, if what a reader cannot know is what it may be.

use super::*;

fn golden() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        !name.contains(".injected.") && !name.ends_with(".txt")
    });
    files.sort();
    files
}

/// The objects of a file, a list's one by one.
fn objects(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).unwrap();
    documents
        .into_iter()
        .flat_map(|mut document| match document["items"].take() {
            Value::Array(items) => items,
            _ => vec![document],
        })
        .filter(|object| object["kind"].is_string())
        .collect()
}

/// The pod of an object: a pod, or a template.
fn pod_of(object: &mut Value) -> Option<&mut Value> {
    let path = match object["kind"].as_str()? {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => "/spec/template",
    };
    object.pointer_mut(path).filter(|pod| pod["spec"]["containers"].is_array())
}

/// The containers of an object that got certificates and have a command, with paths of the image in a directory of ours.
fn members(mut object: Value, directory: &Path) -> Vec<Value> {
    let Some(pod) = pod_of(&mut object) else { return Vec::new() };
    let lists = ["initContainers", "containers"];
    let containers = lists.iter().flat_map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    let work = directory.join("work").display().to_string();
    containers
        .filter(|container| {
            let has = |name: &str| container["env"].as_array().into_iter().flatten().any(|e| e["name"] == name);
            container["command"].is_array() && (has("ETCD_CERT_FILE") || has("ETCDCTL_CERT"))
        })
        .map(|mut container| {
            for field in ["command", "args"] {
                for word in container[field].as_array_mut().into_iter().flatten() {
                    let mut text = word.as_str().unwrap().to_owned();
                    for path in ["/backup", "/data", "/var/", "/scripts/", "/etcd-wrapper"] {
                        text = text.replace(path, &format!("{work}{path}"));
                    }
                    for path in ["/usr/local/bin/etcd", "/usr/bin/etcd"] {
                        text = text.replace(path, "etcd");
                    }
                    *word = text.into();
                }
            }
            container
        })
        .collect()
}

#[test]
fn no_golden_shape_that_is_injected_into_gives_an_option_twice() {
    let laboratory = Laboratory::new("shapes");
    let (mut faults, mut ran) = (Vec::new(), 0);
    let shapes = golden().into_iter().flat_map(|file| {
        let text = fs::read_to_string(&file).unwrap();
        objects(&text).into_iter().map(move |object| (file.clone(), object))
    });
    for (at, (file, object)) in shapes.enumerate() {
        let Ok(done) = inject(&object.to_string(), &options()) else { continue };
        let directory = laboratory.case(at);
        for container in members(serde_json::from_str(&done.text).unwrap(), &directory) {
            let said = run_in(&directory, &container);
            ran += usize::from(said.contains("RAN"));
            if said.contains("CONFLICT") {
                faults.push(format!("{}: {said}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(ran >= 30, "only {ran} containers ran etcd or etcdctl");
}

/// What a refused shape may hold where its manifest does not say: without flags of certificates, and with one.
enum Unknown {
    /// A variable that the image or the node may set.
    Variable(&'static str),
    /// A file of the image, or of a volume.
    File(&'static str),
}

const UNKNOWN: [(&str, Unknown); 4] = [
    ("refused-option-variable.yaml", Unknown::Variable("ETCD_EXTRA_FLAGS")),
    ("refused-script-configmap.yaml", Unknown::File("scripts/start.sh")),
    ("refused-script-file.yaml", Unknown::File("scripts/start.sh")),
    ("refused-wrapper.yaml", Unknown::File("etcd-wrapper")),
];

/// Nothing in these manifests tells one case from the other, so each is refused.
#[test]
fn a_golden_shape_is_refused_for_its_command_line_only_where_a_reader_cannot_know() {
    let laboratory = Laboratory::new("refused");
    let (mut seen, mut at) = (Vec::new(), 0);
    for file in golden() {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let Err(error) = inject(&text, &options()) else { continue };
        if !error.to_string().contains("are unknown") && !error.to_string().contains("annotate etcd-tls.dev/options") {
            continue;
        }
        let (_, unknown) =
            UNKNOWN.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}: {error}"));
        seen.push(name.clone());
        let mut object = objects(&text).remove(0);
        // What the shell gets if nothing is refused.
        pod_of(&mut object).unwrap()["metadata"]["annotations"] = json!({"etcd-tls.dev/options": "env"});
        let done = inject(&object.to_string(), &options()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (flags, conflict) in [("--name=a", false), ("--cert-file=/x", true)] {
            at += 1;
            let directory = laboratory.case(at);
            let mut container = members(serde_json::from_str(&done.text).unwrap(), &directory).remove(0);
            match unknown {
                Unknown::Variable(variable) => {
                    container["env"].as_array_mut().unwrap().push(json!({"name": variable, "value": flags}));
                }
                Unknown::File(path) => {
                    let path = directory.join("work").join(path);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(&path, format!("#!/bin/sh\nexec etcd {flags}\n")).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                }
            }
            let said = run_in(&directory, &container);
            assert!(said.contains("RAN etcd"), "{name}: {said:?}");
            assert_eq!(said.contains("CONFLICT:cert-file"), conflict, "{name} {flags}: {said}");
        }
    }
    assert_eq!(seen, UNKNOWN.map(|(name, _)| name), "the shapes that are refused for their command lines");
}
