"""Makes the demo model, from nothing to the folder that is served: `cd tools && python -m demo_model --help`.

Call it again to go on with a training that was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from demo_model.export import write_model
from demo_model.train import Recipe, Training


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        seed=arguments.seed,
        steps=arguments.steps,
        tokens=arguments.tokens,
        learning_rate=arguments.learning_rate,
        falling_part=arguments.falling_part,
    )
    training = Training(recipe, arguments.work, device=arguments.device, bfloat16=not arguments.float32)
    training.run(arguments.minutes, arguments.report_every)
    write_model(training, arguments.output, grammatical=arguments.grammatical)
    print(f"{arguments.output} holds the model after {training.step} of {recipe.steps} steps")


def _arguments() -> argparse.Namespace:
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-model"), help="folder for the model (default: demo-model)")
    parser.add_argument(
        "--work", type=Path, default=Path("demo-model-work"), help="folder for the checkpoint and the tokenizer"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; a later call goes on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--float32", action="store_true", help="compute in float32: slower where the CPU has bfloat16")
    parser.add_argument("--report-every", type=int, default=100, help="steps between held-out losses and checkpoints")
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--steps", type=int, default=recipe.steps, help="may change until the learning rate begins to fall")
    parser.add_argument("--tokens", type=int, default=recipe.tokens, help="tokens in a step, a multiple of 1024")
    parser.add_argument("--grammatical", type=int, metavar="N", help="how many answers of the card were read as good English")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--falling-part", type=float, default=recipe.falling_part, help="of the steps; may change likewise")
    return parser.parse_args()


if __name__ == "__main__":
    main()
