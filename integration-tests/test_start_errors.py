"""What a user can get wrong at the start: one clear line, a non-zero exit code, nothing left running."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from serving import descendants, free_port, launch, run_to_end


def error_messages(records: list[dict[str, Any]]) -> list[str]:
    return [record["fields"]["message"] for record in records if record["level"] in ("ERROR", None)]


def broken_copy(folder: Path, into: Path) -> Path:
    copy = into / "model"
    shutil.copytree(folder, copy)
    return copy


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_one_clear_line(records: list[dict[str, Any]], *expected: str) -> None:
    """Exactly one error line, which says what is wrong."""
    messages = error_messages(records)
    assert len(messages) == 1, messages
    assert all(part in messages[0] for part in expected), messages


def test_a_folder_that_does_not_exist() -> None:
    code, records, seconds = run_to_end("--model-id", "./no-such-folder")
    assert code != 0
    assert_one_clear_line(records, "no-such-folder")
    assert seconds < 5


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    code, records, _ = run_to_end("--model-id", str(tmp_path))
    assert code != 0
    assert_one_clear_line(records, "config.json")


def test_a_missing_tokenizer(llama_folder: Path, tmp_path: Path) -> None:
    folder = broken_copy(llama_folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    code, records, _ = run_to_end("--model-id", str(folder))
    assert code != 0
    assert_one_clear_line(records, "tokenizer.json")


def test_missing_weights(llama_folder: Path, tmp_path: Path) -> None:
    folder = broken_copy(llama_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    code, records, _ = run_to_end("--model-id", str(folder))
    assert code != 0
    assert_one_clear_line(records, "safetensors")


def test_truncated_weights(llama_folder: Path, tmp_path: Path) -> None:
    folder = broken_copy(llama_folder, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, records, _ = run_to_end("--model-id", str(folder))
    assert code != 0
    assert_one_clear_line(records, "model.safetensors")


def test_an_unknown_architecture_is_refused_in_under_three_seconds(llama_folder: Path, tmp_path: Path) -> None:
    folder = broken_copy(llama_folder, tmp_path)
    edit_config(folder, model_type="gpt9", architectures=["GPT9ForCausalLM"])
    code, records, seconds = run_to_end("--model-id", str(folder))
    assert code != 0
    assert_one_clear_line(records, "llama", "qwen3")
    assert seconds < 3


def test_a_shape_that_does_not_match_the_configuration(llama_folder: Path, tmp_path: Path) -> None:
    folder = broken_copy(llama_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, intermediate_size=config["intermediate_size"] * 2)
    code, records, _ = run_to_end("--model-id", str(folder))
    assert code != 0
    assert any("mlp" in message for message in error_messages(records))
    assert not any("Traceback" in message for message in error_messages(records))


def test_wrong_flags_are_all_named_at_once(llama_folder: Path) -> None:
    code, records, seconds = run_to_end(
        "--model-id", str(llama_folder), "--max-input-tokens", "100", "--max-total-tokens", "50", "--max-batch-size", "0"
    )
    assert code == 2
    text = "\n".join(error_messages(records))
    assert "max-total-tokens" in text
    assert "max-batch-size" in text
    assert seconds < 2


@pytest.mark.parametrize("flags", [("--no-such-flag",), ("--port", "many"), ("--dtype", "float12")])
def test_a_flag_that_cannot_be_parsed(flags: tuple[str, ...]) -> None:
    code, records, _ = run_to_end(*flags)
    assert code == 2
    assert any(flags[0] in message for message in error_messages(records))


def test_a_port_in_use_is_reported_at_once_and_before_any_weight_is_read(llama_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, records, seconds = run_to_end("--model-id", str(llama_folder), port=port)
    assert code != 0
    assert_one_clear_line(records, str(port), "--port")
    assert seconds < 2  # one second is the promise; a busy machine gets another
    assert not any(record.get("target") == "text_gen_server" for record in records)


def test_nothing_is_left_running_after_a_failed_start(tmp_path: Path) -> None:
    process = launch("--model-id", str(tmp_path), port=free_port())
    seen: set[int] = set()
    while process.poll() is None:
        seen.update(descendants(process.pid))
    process.communicate()
    assert seen, "the launcher started no process at all"
    assert not [pid for pid in seen if Path(f"/proc/{pid}").exists()]
