"""Run the notebooks: each `N_name.py` is the source, the `.ipynb` beside it is the same with its outputs.

    python notebooks/build.py                   # all of them, anew: half an hour on two cores
    python notebooks/build.py 2_diffusion       # those whose name begins so
    python notebooks/build.py --fast --out tmp  # quickly, elsewhere: what the tests do

Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTE = re.compile(
    r"I0000 [0-9:. ]+ |WARNING: All log messages before absl::InitializeLog|INFO: Created TensorFlow Lite"
)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources():
    """The scripts of the notebooks, in their order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def read(source):
    """The notebook that a script is, without outputs."""
    notebook = jupytext.read(source)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same from one build to the next
    return notebook


def execute(source, *, fast=False, timeout=1200):
    """The notebook of a script, run from top to bottom by the interpreter that runs this."""
    notebook = read(source)
    environment = {**os.environ, "KERAS_VQDIT_FAST": "1" if fast else "0"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the notebooks choose it: see what their readers see
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no note on how it talks to this process
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
        cell.outputs = [tidy for output in cell.get("outputs", ()) if (tidy := without_notes(output))]
        if cell.cell_type != "code":
            del cell["outputs"]
    return notebook


def without_notes(output):
    """An output without the notes on the machine that TensorFlow and LiteRT write whatever the log level, or None."""
    if output.get("name") != "stderr":
        return output
    output.text = "".join(line for line in output.text.splitlines(keepends=True) if not NOTE.match(line))
    return output if output.text.strip() else None


def complaints(notebook):
    """What went wrong in the outputs: errors, warnings, and whatever was written to the standard error."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            text = output.get("text", "") if output.output_type == "stream" else str(output.get("data", ""))
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr" or re.search(r"\b\w*Warning\b:|\bWARNING\b", text):
                found.append(f"cell {number}: {text[:500]}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; default: all")
    parser.add_argument("--fast", action="store_true", help="with little training")
    parser.add_argument("--out", type=Path, help="folder for the .ipynb files; default: beside the scripts")
    arguments = parser.parse_args()
    if arguments.fast and arguments.out is None:
        parser.error("--fast needs --out: what the fast form shows is not worth keeping")
    chosen = [path for path in sources() if not arguments.names or path.name.startswith(tuple(arguments.names))]
    if not chosen:
        parser.error(f"no notebook begins with {', '.join(arguments.names)}")
    out = arguments.out or FOLDER
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for source in chosen:
        begin = time.perf_counter()
        notebook = execute(source, fast=arguments.fast)
        nbformat.write(notebook, out / f"{source.stem}.ipynb")
        print(f"{source.stem}: {time.perf_counter() - begin:.0f} s", flush=True)
        for complaint in complaints(notebook):
            failed = True
            print(f"  {complaint}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
