//! Checks the flags of the HTTP side and hands them on to the router.

use std::ffi::OsString;
use std::net::IpAddr;

use super::add;
use super::check::Check;
use crate::args::Args;

pub(super) fn add_flags(args: &Args, check: &mut Check, flags: &mut Vec<OsString>) {
    let http = &args.flags.http;
    let typed = args.typed.contains("hostname");
    if let Some(address) = address(&http.hostname, typed, check) {
        add(flags, "--hostname", &address);
    }
    if let Some(port) = check.number("--port", &http.port, 0..=u16::MAX.into()) {
        add(flags, "--port", &port.to_string());
    }
    if let Some(bytes) = check.number("--payload-limit", &http.payload_limit, 1..=u32::MAX.into()) {
        add(flags, "--payload-limit", &bytes.to_string());
    }
    for origin in http.cors_allow_origin.iter().map(|origin| origin.trim()) {
        if origin.is_empty() {
            check.errors.push(
                "--cors-allow-origin holds an empty origin: remove the comma too many".into(),
            );
        }
        add(flags, "--cors-allow-origin", origin);
    }
    if let Some(path) = &http.api_key_file {
        add(flags, "--api-key-file", path);
    }
    for route in http.public_routes.iter().map(|route| route.trim()) {
        if !route.starts_with('/') {
            check.errors.push(format!(
                "--public-routes '{route}': give a path that begins with a slash, such as /metrics"
            ));
        }
        add(flags, "--public-routes", route);
    }
    if let Some(path) = &http.tokenizer_config_path {
        add(flags, "--tokenizer-config-path", path);
    }
}

/// HOSTNAME is set to the machine's name in every container, and means nothing there; a typed name is a mistake, and listening
/// everywhere instead would be a dangerous guess.
fn address(hostname: &str, typed: bool, check: &mut Check) -> Option<String> {
    if hostname.parse::<IpAddr>().is_ok() {
        return Some(hostname.to_owned());
    }
    if hostname == "localhost" {
        return Some("127.0.0.1".to_owned());
    }
    if typed {
        check.errors.push(format!(
            "--hostname '{hostname}': give an IP address, such as 0.0.0.0 or 127.0.0.1"
        ));
        return None;
    }
    Some("0.0.0.0".to_owned())
}
