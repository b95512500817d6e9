//! Starting: in which order, with which arguments, and where the sockets are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::stage::{ROUTER, SERVER, Stage, value, words};

#[test]
fn the_router_comes_first_then_the_model_then_the_shards() {
    let mut stage = Stage::new();
    let mut launcher = stage.launch(&["--model-id", "org/name", "--num-shard", "2"]);
    launcher.wait_until_ready();
    let events = stage.wait_for_all(&[
        "router reads phase loading weights",
        "shard 0 starts",
        "shard 1 starts",
    ]);
    let at = |event: &str| {
        events
            .iter()
            .position(|line| line == event)
            .unwrap_or_else(|| panic!("{event} in {events:?}"))
    };
    assert!(at("router starts") < at("router reads phase resolving model org/name"));
    assert!(at("router starts") < at("resolve starts"));
    assert!(at("resolve starts") < at("router reads model /models/found"));
    assert!(at("router reads model /models/found") < at("router reads revision abc123"));
    assert!(at("resolve starts") < at("shard 0 starts"));
    assert!(at("resolve starts") < at("shard 1 starts"));
}

#[test]
fn without_a_model_the_demo_model_is_served_and_said_to_be_it() {
    let router = format!("printf '%s\\n' \"$@\" > \"${{EVENTS%/*}}/router.argv\"\n{ROUTER}");
    let mut stage = Stage::new().router(&router);
    let mut launcher = stage.launch(&[]);
    launcher.wait_for_log("This is the small demo model");
    assert!(
        stage
            .wait_for("router reads phase loading weights")
            .contains(&"demo-model starts".to_owned())
    );
    let router = words(&stage.path("router.argv"));
    assert_eq!(value(&router, "--model-id"), Some("text-gen-demo"));
    assert!(router.iter().any(|word| word == "--demo-model"));
}

#[test]
fn every_process_gets_its_place_in_the_group() {
    let router = format!("printf '%s\\n' \"$@\" > \"${{EVENTS%/*}}/router.argv\"\n{ROUTER}");
    let server = format!("printf '%s\\n' \"$@\" > \"${{EVENTS%/*}}/$1-$7.argv\"\n{SERVER}");
    let stage = Stage::new().router(&router).server(&server);
    let flags = [
        "--model-id",
        "org/name",
        "--revision",
        "main",
        "--huggingface-hub-cache",
        "/cache",
    ];
    let mut launcher = stage.launch(
        &[
            &flags[..],
            &["--num-shard", "2", "--dtype", "bfloat16", "-p", "0"],
        ]
        .concat(),
    );
    launcher.wait_until_ready();

    let sockets = stage.socket_dir();
    let socket = |rank| {
        sockets
            .join(format!("shard-{rank}.sock"))
            .display()
            .to_string()
    };
    let router = words(&stage.path("router.argv"));
    assert_eq!(value(&router, "--model-id"), Some("org/name"));
    assert!(router.iter().all(|word| word != "--demo-model"));
    assert_eq!(value(&router, "--port"), Some("0"));
    let first = router
        .iter()
        .position(|word| word == "--shard-socket")
        .expect("the router gets sockets");
    assert_eq!(
        router[first + 1..first + 4],
        [socket(0), "--shard-socket".into(), socket(1)]
    );

    let shard = words(&stage.path("serve-1.argv"));
    assert_eq!(value(&shard, "--model-dir"), Some("/models/found"));
    assert_eq!(value(&shard, "--world-size"), Some("2"));
    assert_eq!(value(&shard, "--socket"), Some(socket(1).as_str()));
    assert_eq!(
        value(&shard, "--rendezvous-dir"),
        sockets.join("rendezvous").to_str()
    );
    assert_eq!(value(&shard, "--dtype"), Some("bfloat16"));
    assert_eq!(value(&shard, "--device"), Some("auto"));

    let resolve = words(&stage.path("resolve---cache-dir.argv"));
    assert_eq!(value(&resolve, "--model-id"), Some("org/name"));
    assert_eq!(value(&resolve, "--cache-dir"), Some("/cache"));
}

#[test]
fn only_the_owner_can_enter_the_socket_directory() {
    let stage = Stage::new();
    let mut launcher = stage.launch(&[]);
    launcher.wait_until_ready();
    let mode = fs::metadata(stage.socket_dir())
        .expect("it exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_secret_reaches_the_one_process_that_needs_it_and_no_argument() {
    let report = "tell \"$0 has ${API_KEY:-unset} and ${API_KEYS:-no keys} and ${HF_TOKEN:-no token} in $*\"";
    let router = format!("{report}\n{ROUTER}");
    let server = format!("{report}\n{SERVER}");
    let mut stage = Stage::new().router(&router).server(&server);
    let secrets = [("API_KEY", "key-of-clients"), ("HF_TOKEN", "token-of-hub")];
    let mut launcher = stage.launch_with(&["--model-id", "org/name"], &secrets);
    launcher.wait_until_ready();
    let mut events = stage.wait_for("shard 0 starts");
    events.retain(|line| line.contains(" has "));
    let with = |text: &str| {
        events
            .iter()
            .filter(|line| line.contains(text))
            .collect::<Vec<_>>()
    };
    assert_eq!(events.len(), 3);
    assert!(
        with("key-of-clients")[0]
            .contains("text-gen-router has unset and key-1:key-of-clients and no token")
    );
    assert!(
        with("token-of-hub")[0]
            .contains("text-gen-server has unset and no keys and token-of-hub in resolve")
    );
    assert_eq!(
        (with("key-of-clients").len(), with("token-of-hub").len()),
        (1, 1)
    );
    for line in events {
        let (_, arguments) = line.split_once(" in ").expect("the report has arguments");
        assert!(
            !arguments.contains("key-of-clients") && !arguments.contains("token-of-hub"),
            "{line}"
        );
    }
}
