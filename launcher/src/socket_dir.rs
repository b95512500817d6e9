//! The private directory in which the sockets of one launcher lie. Random, mode 0700, removed when dropped.
//!
//! A launcher that was killed leaves its directory behind; the next one removes it, which a lock tells from those in use.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PREFIX: &str = "text-gen-";
const LOCK: &str = "lock";

/// The address of a unix socket holds 108 bytes on Linux, 104 elsewhere, and an end.
const MAX_SOCKET_PATH_BYTES: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum SocketDirError {
    #[error(
        "cannot make a directory for sockets in {dir}: {source}; set TMPDIR to a directory that can be written"
    )]
    Create { dir: PathBuf, source: io::Error },
    #[error(
        "the path {path} is too long for a socket (over {MAX_SOCKET_PATH_BYTES} bytes); set TMPDIR to a shorter one"
    )]
    TooLong { path: PathBuf },
}

#[derive(Debug)]
pub struct SocketDir {
    dir: TempDir,
    /// Held for as long as the directory is in use.
    _lock: File,
}

impl SocketDir {
    /// A new directory in `parent`, for this many shards.
    pub fn create(parent: &Path, num_shards: usize) -> Result<Self, SocketDirError> {
        remove_abandoned(parent);
        let this = Self::try_create(parent).map_err(|source| SocketDirError::Create {
            dir: parent.to_owned(),
            source,
        })?;
        let path = this.shard_socket(num_shards.saturating_sub(1));
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(SocketDirError::TooLong { path });
        }
        Ok(this)
    }

    fn try_create(parent: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        // Locked before it gets its name, so that nobody can take this directory for an abandoned one.
        let unnamed = dir.path().join("lock.new");
        let lock = File::create_new(&unnamed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(&unnamed, dir.path().join(LOCK))?;
        let this = Self { dir, _lock: lock };
        fs::create_dir(this.rendezvous_dir())?;
        Ok(this)
    }

    pub fn shard_socket(&self, rank: usize) -> PathBuf {
        self.dir.path().join(format!("shard-{rank}.sock"))
    }

    /// Where the shards find each other.
    pub fn rendezvous_dir(&self) -> PathBuf {
        self.dir.path().join("rendezvous")
    }
}

fn remove_abandoned(parent: &Path) {
    let entries = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        if is_ours(&entry.path()) && is_abandoned(&entry.path()) {
            // Best effort: what stays is removed the next time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_ours(dir: &Path) -> bool {
    let own_uid = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(dir).is_ok_and(|data| data.is_dir() && data.uid() == own_uid)
}

fn is_abandoned(dir: &Path) -> bool {
    File::open(dir.join(LOCK))
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> TempDir {
        tempfile::tempdir().expect("a directory for the test")
    }

    #[test]
    fn only_the_owner_can_enter() {
        let parent = parent();
        let sockets = SocketDir::create(parent.path(), 1).expect("a socket directory");
        let mode = fs::metadata(sockets.dir.path())
            .expect("it exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn dropping_it_removes_it_with_what_is_in_it() {
        let parent = parent();
        let sockets = SocketDir::create(parent.path(), 1).expect("a socket directory");
        fs::write(sockets.shard_socket(0), "").expect("a file in the place of a socket");
        drop(sockets);
        assert_eq!(
            fs::read_dir(parent.path())
                .expect("the parent stays")
                .count(),
            0
        );
    }

    #[test]
    fn an_abandoned_directory_is_removed_and_one_in_use_is_not() {
        let parent = parent();
        let in_use = SocketDir::create(parent.path(), 1).expect("a socket directory");
        let SocketDir { dir, _lock } =
            SocketDir::create(parent.path(), 1).expect("a socket directory");
        let abandoned = dir.keep();
        drop(_lock);
        let foreign = parent.path().join("text-gen-notes");
        fs::create_dir(&foreign).expect("a directory without a lock");

        let _next = SocketDir::create(parent.path(), 1).expect("a socket directory");
        assert!(!abandoned.exists());
        assert!(in_use.rendezvous_dir().exists());
        assert!(foreign.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error_that_says_what_to_do() {
        let parent = parent();
        let deep = parent.path().join("x".repeat(90));
        fs::create_dir(&deep).expect("a directory with a long name");
        let error = SocketDir::create(&deep, 1)
            .expect_err("it is too long")
            .to_string();
        assert!(error.contains("TMPDIR"), "{error}");
    }
}
