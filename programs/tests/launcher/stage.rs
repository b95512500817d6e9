//! Where a test plays: scripts in the place of the other programs, a directory for temporary files, and a pipe with a name that
//! tells what happens. Every script holds the pipe open, so that its end says that nothing is left.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

/// Longer than anything takes that waits for nothing, also on a busy machine, and shorter than every time of grace.
pub const SOON: Duration = Duration::from_secs(4);

/// What every script begins with. `tell` reports an event; `live` waits for the end of the life line or for SIGTERM.
/// A second pipe, which every script holds open for reading and writing, tells the router which shards are alive.
const PRELUDE: &str = r#"#!/bin/sh
exec 9>"$EVENTS" 8<>"$EVENTS.alive" 3<&0
trap '' PIPE # the test may be over
tell() { echo "$*" >&9; }
log() { echo "{\"timestamp\":\"T\",\"level\":\"$1\",\"fields\":{\"message\":\"$2\"$3},\"target\":\"$me\"}"; }
live() {
  trap 'tell "$me gets SIGTERM"; on_term' TERM
  { while read -r line; do tell "$me reads $line"; on_line "$line"; done; tell "$me reads the end"; kill -KILL 0; } <&3 &
  alive
  while :; do wait; done
}
alive() { :; }
on_line() { :; }
on_term() { exit 0; }
"#;

/// A router that is ready when every shard is alive.
pub const ROUTER: &str = r#"
me=router
tell "router starts"
log INFO "listening" ',"event":"listening","port":1'
count_shards() { num_shards=0; for word; do [ "$word" = --shard-socket ] && num_shards=$((num_shards+1)); done; }
count_shards "$@"
on_line() {
  [ "$1" = "phase loading weights" ] || return
  { while [ $num_shards -gt 0 ]; do read -r _ <&8; num_shards=$((num_shards-1)); done
    log INFO "serving" ',"event":"ready"'; } &
}
live
"#;

/// A server that finds any model, and whose shards only live.
pub const SERVER: &str = r#"
case "$1" in
serve) me="shard $7" ;;
*) me="$1" ;;
esac
tell "$me starts"
alive() { echo "$me" >&8; }
case "$1" in
serve) live ;;
*) echo '{"model_dir":"/models/found","model_id":"any","revision":"abc123"}' ;;
esac
"#;

pub struct Stage {
    dir: TempDir,
    events: Lines,
}

impl Stage {
    /// With the programs as they should be.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let pipe = dir.path().join("events");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe with a name");
        let alive = dir.path().join("events.alive");
        mknodat(CWD, &alive, FileType::Fifo, Mode::RWXU, 0).expect("a pipe with a name");
        fs::create_dir(dir.path().join("tmp")).expect("a directory for sockets");
        let events = Lines::read("event", move || File::open(pipe).expect("the pipe opens"));
        Self { dir, events }.router(ROUTER).server(SERVER)
    }

    pub fn router(self, script: &str) -> Self {
        self.write("text-gen-router", script)
    }

    pub fn server(self, script: &str) -> Self {
        self.write("text-gen-server", script)
    }

    fn write(self, name: &str, script: &str) -> Self {
        let path = self.path(name);
        fs::write(&path, format!("{PRELUDE}{script}")).expect("the script is written");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the script can be run");
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn temp_dir(&self) -> PathBuf {
        self.path("tmp")
    }

    pub fn launch(&self, flags: &[&str]) -> Launcher {
        self.launch_with(flags, &[])
    }

    pub fn launch_with(&self, flags: &[&str], variables: &[(&str, &str)]) -> Launcher {
        Launcher::new(self.spawn(flags, variables))
    }

    /// A launcher whose log nobody reads.
    pub fn launch_unread(&self, flags: &[&str]) -> Unread {
        Unread(self.spawn(flags, &[]))
    }

    fn spawn(&self, flags: &[&str], variables: &[(&str, &str)]) -> Child {
        let router = self.path("text-gen-router").display().to_string();
        let server = self.path("text-gen-server").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_text-gen-launcher"));
        command
            .args(["--router-program", &router, "--server-program", &server])
            .args(flags)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("EVENTS", self.path("events"))
            .env("TMPDIR", self.temp_dir())
            .env("NVIDIA_VISIBLE_DEVICES", "void")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("the launcher starts")
    }

    /// Waits for this event, and gives all that came before it.
    pub fn wait_for(&mut self, event: &str) -> Vec<String> {
        self.events.wait_for(|line| line == event, event)
    }

    /// Waits for all of these events, in any order, and gives all that came until then.
    pub fn wait_for_all(&mut self, events: &[&str]) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for event in events {
            if !seen.iter().any(|line| line == event) {
                seen.extend(self.wait_for(event));
            }
        }
        seen
    }

    /// Waits until no process is left, and gives the remaining events.
    pub fn wait_for_the_end(&mut self) -> Vec<String> {
        self.events.rest()
    }

    pub fn assert_no_file_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.temp_dir())
            .expect("it can be read")
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// The directory that the running launcher has made.
    pub fn socket_dir(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.temp_dir())
            .expect("it can be read")
            .flatten();
        entries.next().expect("there is a socket directory").path()
    }
}

/// A running launcher; killed when dropped.
pub struct Launcher {
    process: Child,
    pub log: Lines,
    pub errors: Lines,
}

impl Launcher {
    fn new(mut process: Child) -> Self {
        let stdout = process.stdout.take().expect("it is piped");
        let stderr = process.stderr.take().expect("it is piped");
        let log = Lines::read("log line", move || stdout);
        let errors = Lines::read("error line", move || stderr);
        Self {
            process,
            log,
            errors,
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().expect("a process id"))
            .expect("a process id");
        kill_process(pid, signal).expect("the launcher can be signalled");
    }

    pub fn wait_until_ready(&mut self) {
        self.wait_for_log("Ready: ");
    }

    /// Waits for a line with this text, and gives all lines up to it.
    pub fn wait_for_log(&mut self, text: &str) -> Vec<String> {
        self.log.wait_for(|line| line.contains(text), text)
    }

    /// Waits for the end of the log and of the launcher; gives its exit code and the rest of the log.
    pub fn wait(&mut self) -> (ExitStatus, Vec<String>) {
        let rest = self.log.rest();
        (self.process.wait().expect("it can be waited for"), rest)
    }

    pub fn wait_for_code(&mut self) -> Option<i32> {
        self.wait().0.code()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A running launcher with full pipes; killed when dropped.
pub struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines that a thread reads, to be waited for.
pub struct Lines {
    what: &'static str,
    receiver: Receiver<String>,
}

impl Lines {
    fn read<R: Read + 'static>(
        what: &'static str,
        open: impl FnOnce() -> R + Send + 'static,
    ) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(open()).lines().map_while(Result::ok);
            // What the test harness itself says is none of the launcher's.
            for line in lines.filter(|line| !line.is_empty() && line != "running 1 test") {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { what, receiver }
    }

    fn wait_for(&mut self, is_it: impl Fn(&str) -> bool, wanted: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while !seen.last().is_some_and(|line: &String| is_it(line)) {
            match self
                .receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => seen.push(line),
                Err(error) => panic!("no {} '{wanted}' ({error}) after {seen:#?}", self.what),
            }
        }
        seen
    }

    /// Everything up to the end.
    pub fn rest(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self
                .receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return seen,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no end of the {}s after {seen:#?}", self.what)
                }
            }
        }
    }
}

/// The words of a file that a script wrote with `printf '%s\n' "$@"`.
pub fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .expect("the script wrote it")
        .lines()
        .map(String::from)
        .collect()
}

pub fn value<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == flag)?;
    words.get(at + 1).map(String::as_str)
}
