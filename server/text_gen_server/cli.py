"""The `text-gen-server` command: flags in, one shard or one line of JSON out. Only this file reads flags and the environment.

What is heavy is imported after the flags and the model folder were checked, so that a mistake is answered at once, in one
line and with exit code 2.
"""

import logging
import os
import signal
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from text_gen_server.host import usable_cores
from text_gen_server.log import set_up_logging

log = logging.getLogger("text_gen_server")

USER_ERROR = 2
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def main() -> None:
    """The entry point."""
    try:
        command.main(standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except (click.ClickException, ValueError) as error:
        set_up_logging(json_output="--json-output" in sys.argv)
        log.error("%s", error.format_message() if isinstance(error, click.ClickException) else error)
        sys.exit(USER_ERROR)


@click.group(context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]})
def command() -> None:
    """One shard of a text-gen server, and the tools that need Python."""


@command.command()
@click.option("--model-dir", type=FOLDER, required=True, help="Folder of the model, as `resolve` gives it.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--world-size", type=click.IntRange(min=1), default=1, show_default=True, help="Number of ranks.")
@click.option("--socket", type=click.Path(path_type=Path), required=True, help="Unix socket to answer on.")
@click.option("--rendezvous-dir", type=FOLDER, help="Empty folder in which the ranks find each other.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--attention", default="auto", show_default=True, help="Attention implementation.")
@click.option("--quantize", type=click.Choice(["int8", "int4", "fp8"]), help="Round weights when they are loaded.")
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "fp8_e4m3fn", "fp8_e5m2"]), default="auto", show_default=True)
@click.option("--rope-scaling", type=click.Choice(["linear", "dynamic"]), help="Replaces the model's own.")
@click.option("--rope-factor", type=click.FloatRange(min=1.0), help="Stretch of the positions.")
@click.option("--cuda-memory-fraction", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, show_default=True)
@click.option("--cuda-graphs", callback=lambda _, __, text: _parse_sizes(text), help="Batch sizes, such as 1,2,4; 0: none.")
@click.option("--num-threads", type=click.IntRange(min=1), help="CPU threads; default: the usable cores / world size.")
@click.option("--json-output", is_flag=True, help="Log lines as JSON.")
@click.option("--supervised", is_flag=True, help="End at once when stdin is closed.")
def serve(
    *,
    model_dir: Path,
    rank: int,
    world_size: int,
    socket: Path,
    rendezvous_dir: Path | None,
    dtype: str,
    device: str,
    attention: str,
    quantize: str | None,
    kv_cache_dtype: str,
    rope_scaling: str | None,
    rope_factor: float | None,
    cuda_memory_fraction: float,
    cuda_graphs: tuple[int, ...] | None,
    num_threads: int | None,
    json_output: bool,
    supervised: bool,
) -> None:
    """Load one rank of a model and answer the router on a socket."""
    set_up_logging(json_output=json_output)
    if supervised:
        threading.Thread(target=_exit_at_end_of_stdin, daemon=True, name="supervision").start()
    # Until there is something to finish, a SIGTERM simply ends the process.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if rank >= world_size:
        raise click.UsageError(f"--rank {rank} must be below --world-size {world_size}")
    from text_gen_server.config import load_model_config

    config = load_model_config(model_dir, rope_scaling=rope_scaling, rope_factor=rope_factor)
    # The imports of torch and grpc come here, seconds after what is checked above.
    from text_gen_server.service import check_socket_path, stop_on_signals
    from text_gen_server.service import serve as serve_shard
    from text_gen_server.shard import Shard, ShardOptions

    check_socket_path(socket)
    options = ShardOptions(
        model_dir=model_dir,
        rank=rank,
        world_size=world_size,
        rendezvous_dir=rendezvous_dir,
        dtype=dtype,
        device=device,
        attention=attention,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
        cuda_memory_fraction=cuda_memory_fraction,
        cuda_graphs=cuda_graphs,
        num_threads=num_threads or max(1, usable_cores() // world_size),
    )
    shard = Shard(options, config)
    serve_shard(shard, socket, server_version=_version(), stop=stop_on_signals(ignore_interrupt=supervised))
    # Nothing is left to tidy up, and the libraries' own teardown takes longer than a restart may.
    logging.shutdown()
    os._exit(0)


@command.command()
@click.option("--model-id", required=True, help="A local folder, or the name of a model on the hub.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Cache of the hub's files.")
@click.option("--json-output", is_flag=True, help="Log lines as JSON.")
def resolve(*, model_id: str, revision: str | None, cache_dir: Path | None, json_output: bool) -> None:
    """Find or download a model, check its folder, and print where it is as one line of JSON."""
    set_up_logging(json_output=json_output)
    from text_gen_server.hub import resolve_model

    click.echo(resolve_model(model_id, revision=revision, cache_dir=cache_dir).to_json())


@command.command("demo-model")
@click.option("--json-output", is_flag=True, help="Log lines as JSON.")
def demo_model(*, json_output: bool) -> None:
    """Check the demo model, which comes with this program, and print where it is as one line of JSON."""
    set_up_logging(json_output=json_output)
    from text_gen_server.demo import NAME, check_demo_model
    from text_gen_server.hub import ResolvedModel

    click.echo(ResolvedModel(check_demo_model().resolve(), NAME, None).to_json())


def _parse_sizes(text: str | None) -> tuple[int, ...] | None:
    """Batch sizes with commas between them."""
    if text is None:
        return None
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise click.BadParameter(f"{text!r}: give batch sizes with commas between them, such as 1,2,4, or 0 for no graphs")
    return tuple(int(size) for size in sizes)


def _exit_at_end_of_stdin() -> None:
    """The launcher holds the other end and never writes: the end of stdin is the launcher's end, however it came."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _version() -> str:
    try:
        return version("text-gen")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
