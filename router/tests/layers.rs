//! Imports of the router point down. Reads every source file, finds the modules of this crate that it names, and fails where one
//! is not below it; files that only tests compile are free. Also keeps HTTP, JSON and gRPC in the modules that they belong to.
//!
//! Reading JSON files of the model folder is the one use of JSON outside `http`: `input` (chat templates, `tokenizer_config.json`)
//! and `tokenizer` parse what they load.

// Helpers of tests may unwrap too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from top to bottom; those on one line do not see each other. Files of `lib`'s own level start and stop the process.
const LAYERS: [&[&str]; 8] = [
    &["lib"],
    &["config"],
    &["http"],
    &["generation"],
    &["input", "engine", "output"],
    &["grammar"],
    &["tokenizer", "shard"],
    &["types", "telemetry"],
];

/// Modules that only the crate's root may use, and that count as a part of it.
const ROOT_MODULES: [&str; 2] = ["startup", "supervision"];

/// Crates that only the named modules may use.
const OWNED_CRATES: [(&[&str], &[&str]); 3] = [
    (&["axum", "tower_http"], &["http"]),
    (&["serde_json"], &["http", "input", "grammar", "tokenizer"]),
    (&["tonic", "tonic_prost", "prost"], &["shard"]),
];

/// One file of the crate.
struct Source {
    name: String,
    /// Of its module, such as `engine/metrics`.
    path: PathBuf,
    /// The top module that it belongs to.
    module: String,
    /// How many modules deep the file's module is: 1 for `engine` itself.
    depth: usize,
    text: String,
}

fn level(module: &str) -> Option<usize> {
    if ROOT_MODULES.contains(&module) {
        return Some(0);
    }
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// What breaks a rule in a file, one line each.
fn violations(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    let Some(own_level) = level(&source.module) else {
        return vec![format!(
            "{}: module `{}` has no layer",
            source.name, source.module
        )];
    };
    let code = without_comments(&source.text);
    for import in crate_modules(&code, source.depth) {
        let Some(import_level) = level(&import) else {
            continue; // an item of the root, such as a function in lib.rs
        };
        let same_root = own_level == 0 && import_level == 0;
        if import != source.module && import_level <= own_level && !same_root {
            violations.push(format!(
                "{}: `{}` must not see `{import}`",
                source.name, source.module
            ));
        }
    }
    for (crates, owners) in OWNED_CRATES {
        for name in crates
            .iter()
            .filter(|_| !owners.contains(&source.module.as_str()))
        {
            if names_path(&code, name) {
                violations.push(format!("{}: `{name}` belongs to {owners:?}", source.name));
            }
        }
    }
    violations
}

fn without_comments(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether `name::` stands in the code as a path of its own.
fn names_path(code: &str, name: &str) -> bool {
    let pattern = format!("{name}::");
    code.match_indices(&pattern)
        .any(|(at, _)| starts_path(code, at))
}

fn starts_path(code: &str, at: usize) -> bool {
    let before = code[..at].chars().next_back();
    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

/// The first names behind `crate::`, and behind as many `super::` as lead to the root.
fn crate_modules(code: &str, depth: usize) -> Vec<String> {
    let mut modules = Vec::new();
    for prefix in ["crate::".to_string(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&prefix) {
            if starts_path(code, at) {
                modules.extend(first_names(&code[at + prefix.len()..]));
            }
        }
    }
    modules
}

/// `a::b` names `a`; `{a::b, c, d::{e}}` names `a`, `c` and `d`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut names = vec![name(group)];
    let mut open = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            ',' if open == 1 => names.push(name(&group[at + 1..])),
            _ => (),
        }
        if open == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Every file of the crate but those that only tests compile.
fn sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut test_modules = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = source(root, path);
                let names = test_modules_of(&source.text).into_iter();
                test_modules.extend(names.map(|name| source.path.join(name)));
                sources.push(source);
            }
        }
    }
    let is_test = |path: &Path| test_modules.iter().any(|module| path.starts_with(module));
    sources.retain(|source| !is_test(&source.path));
    sources
}

/// The names in `#[cfg(test)] mod name;`.
fn test_modules_of(text: &str) -> Vec<String> {
    let behind_attribute = text.split("#[cfg(test)]").skip(1);
    let declarations = behind_attribute.filter_map(|text| text.split_once(';'));
    declarations
        .filter_map(|(declaration, _)| declaration.trim().rsplit_once("mod "))
        .map(|(_, name)| name.to_string())
        .filter(|name| !name.contains(char::is_whitespace))
        .collect()
}

fn source(root: &Path, path: PathBuf) -> Source {
    let name = path.strip_prefix(root).unwrap();
    let mut inside = name.with_extension("");
    if inside.ends_with("mod") {
        inside.pop();
    }
    let mut parts = inside.iter().map(|part| part.to_str().unwrap());
    Source {
        name: name.display().to_string(),
        module: parts.next().unwrap().to_string(),
        depth: inside.iter().count(),
        text: fs::read_to_string(&path).unwrap(),
        path: inside,
    }
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = sources(&root);
    assert!(sources.len() > 20, "only {} files found", sources.len());
    let violations: Vec<String> = sources.iter().flat_map(violations).collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// The violations of a made-up file.
fn violations_of(module: &str, depth: usize, text: &str) -> usize {
    violations(&Source {
        name: "made_up.rs".to_string(),
        path: PathBuf::from(module),
        module: module.to_string(),
        depth,
        text: text.to_string(),
    })
    .len()
}

#[test]
fn the_check_sees_imports_that_point_up_or_sideways() {
    assert_eq!(violations_of("engine", 1, "use crate::http::Phase;"), 1);
    assert_eq!(violations_of("engine", 2, "use crate::input::Request;"), 1);
    assert_eq!(
        violations_of("types", 1, "use crate::{telemetry::A, shard::{B, C}};"),
        2
    );
    assert_eq!(
        violations_of(
            "shard",
            1,
            "use crate::{\n    types::A,\n    engine::B,\n};"
        ),
        1
    );
    assert_eq!(
        violations_of("output", 2, "fn f() { crate::generation::g(); }"),
        1
    );
    assert_eq!(violations_of("output", 1, "use super::http::x;"), 1);
    assert_eq!(violations_of("output", 2, "use super::super::http::x;"), 1);
    assert_eq!(violations_of("http", 1, "use crate::startup::x;"), 1);
    assert_eq!(violations_of("nowhere", 1, ""), 1);
}

#[test]
fn the_check_sees_crates_in_the_wrong_module() {
    assert_eq!(violations_of("engine", 1, "use tonic::Status;"), 1);
    assert_eq!(
        violations_of("generation", 1, "fn f() -> axum::http::StatusCode {}"),
        1
    );
    assert_eq!(violations_of("output", 1, "use serde_json::Value;"), 1);
    assert_eq!(violations_of("shard", 1, "use tonic::Status;"), 0);
    assert_eq!(
        violations_of("http", 1, "use axum::Router; use serde_json::json;"),
        0
    );
}

#[test]
fn the_check_lets_imports_down_pass() {
    assert_eq!(
        violations_of("http", 1, "use crate::generation::A; use crate::types::B;"),
        0
    );
    assert_eq!(
        violations_of("engine", 2, "use super::metrics::A; use crate::shard::B;"),
        0
    );
    assert_eq!(violations_of("engine", 2, "// use crate::http::A;"), 0);
    assert_eq!(
        violations_of("lib", 1, "crate::http::serve(); crate::startup::run();"),
        0
    );
    assert_eq!(violations_of("engine", 1, "use other_crate::http::A;"), 0);
}

#[test]
fn modules_that_only_tests_compile_are_known_by_their_attribute() {
    let text =
        "mod a;\n#[cfg(test)]\npub(crate) mod b;\nmod c;\n#[cfg(test)]\nmod tests { use x; }\n";
    assert_eq!(test_modules_of(text), ["b"]);
}
