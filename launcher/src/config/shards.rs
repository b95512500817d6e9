//! How many shards there are: what the user says, else one for each GPU that is visible, else one.

use super::check::Check;
use crate::args::{DeviceArgs, Surroundings};

/// More devices than any machine has.
const MAX_SHARDS: u64 = 64;

pub(super) fn num_shards(
    devices: &DeviceArgs,
    surroundings: &Surroundings,
    check: &mut Check,
) -> usize {
    let sharded = devices
        .sharded
        .as_ref()
        .and_then(|text| check.boolean("--sharded", text));
    let given = devices
        .num_shard
        .as_ref()
        .and_then(|text| check.number("--num-shard", text, 1..=MAX_SHARDS));
    if sharded == Some(false) {
        if given.is_some_and(|n| n > 1) {
            check.warnings.push(
                "--num-shard has no effect: --sharded is false, so there is one shard".into(),
            );
        }
        return 1;
    }
    let found = if devices.device == "cpu" {
        1
    } else {
        visible_gpus(surroundings)
    };
    let num_shards = given.map_or(found, |n| n as usize);
    if sharded == Some(true) && num_shards == 1 && check.errors.is_empty() {
        let reason = if given.is_some() {
            "--num-shard is 1"
        } else {
            "fewer than two GPUs are visible"
        };
        check.errors.push(format!(
            "--sharded is true, but {reason}: give --num-shard 2 or more, or remove --sharded"
        ));
    }
    num_shards
}

/// At least 1.
fn visible_gpus(surroundings: &Surroundings) -> usize {
    let listed = surroundings
        .cuda_visible_devices
        .as_deref()
        .map(count_listed);
    let in_container = surroundings
        .nvidia_visible_devices
        .as_deref()
        .filter(|list| *list != "all" && !list.is_empty());
    let count = listed
        .or_else(|| in_container.map(count_listed))
        .unwrap_or(surroundings.num_driver_gpus);
    count.max(1)
}

/// As CUDA reads its list: what follows an invalid entry is not seen.
fn count_listed(list: &str) -> usize {
    let is_device =
        |entry: &&str| !entry.is_empty() && !["-1", "none", "void", "NoDevFiles"].contains(entry);
    list.split(',').map(str::trim).take_while(is_device).count()
}
