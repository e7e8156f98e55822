"""Makes test/data/programs: an archive and goldens for each program of this folder. Needs torch 2.11.

    python test/programs/make.py [NAME ...]      (all without a name; refused programs by "refused")
"""

import os
import sys
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "python"), HERE]

import torch  # noqa: E402

import attention  # noqa: E402,F401
import golden  # noqa: E402
import losses  # noqa: E402,F401
import mixers  # noqa: E402,F401
import parts  # noqa: E402
import refused  # noqa: E402
from autosp.exporter import export  # noqa: E402

OUT = os.path.join(ROOT, "test", "data", "programs")


def shorten_paths(path):
    """Source lines inside the archive are named relative to the repository, so that archives made anywhere are alike."""
    folders = {ROOT + os.sep: "", os.path.dirname(os.path.dirname(torch.__file__)) + os.sep: ""}
    with zipfile.ZipFile(path) as z:
        members = [(m, z.read(m)) for m in z.infolist()]
    with zipfile.ZipFile(path + ".part", "w") as z:
        for member, data in members:
            if "/models/" in member.filename:
                for long, short in folders.items():
                    data = data.replace(long.encode(), short.encode())
            z.writestr(zipfile.ZipInfo(member.filename), data)
    os.replace(path + ".part", path)


def write_archive(model, inputs, folder):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.pt2")
    export(model, inputs, path)
    shorten_paths(path)
    return os.path.getsize(path)


def make(name, p):
    folder = os.path.join(OUT, name)
    size = write_archive(p.build(), p.inputs(*p.example), folder)
    sizes = []
    for batch, seq in p.bindings:
        path = os.path.join(folder, f"b{batch}s{seq}.safetensors")
        golden.save_safetensors(golden.compute(p.build(), p.inputs(batch, seq)), path)
        sizes.append(os.path.getsize(path))
    print(f"{name}: archive {size // 1000} kB, goldens {max(sizes) // 1000} kB", flush=True)


def make_refused(cls):
    folder = os.path.join(OUT, "refused", cls.__name__)
    torch.manual_seed(1)
    size = write_archive(cls().train(), parts.text_inputs(2, 24), folder)
    with open(os.path.join(folder, "expect.txt"), "w") as f:
        f.write(cls.expect + "\n")
    print(f"refused/{cls.__name__}: archive {size // 1000} kB", flush=True)


def main():
    chosen = sys.argv[1:] or list(parts.PROGRAMS) + ["refused"]
    failed = 0
    jobs = [(make_refused, (c,)) for c in refused.REFUSED if "refused" in chosen]
    jobs += [(make, (name, parts.PROGRAMS[name])) for name in chosen if name != "refused"]
    for job, args in jobs:
        try:
            job(*args)
        except Exception as e:  # one program that does not export must not keep the others from being made
            failed += 1
            print(f"{args[0]}: {type(e).__name__}: {str(e).strip()[:300]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
