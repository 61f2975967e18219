"""Environment: packages, hardware, flags, network."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="E01",
        title="Import or version errors",
        symptom="Python stops at an import (`ImportError`, `cannot import name`, `undefined symbol`), or "
        "training stops with an argument that a library does not know.",
        seen="Installed versions against the ranges whet was run with, at every plan. `whet doctor` also "
        "imports everything in a process of its own and names the package that fails or takes the "
        "process down.",
        why="torch, transformers, TRL and PEFT change together. Another tool's installation often moves "
        "one of them alone, and a second installation can lie before the right one on Python's "
        "path.",
        fix="Run the `pip install` line of the finding: it pins exact versions out of a set that ran "
        "together. A fresh virtual environment is the surest way.",
    ),
    Entry(
        id="E02",
        title="bitsandbytes or CUDA library not found",
        symptom="Loading in 4 or 8 bits fails with `libcudart`, `libcublas` or `libbitsandbytes` not found; "
        "or training runs on the CPU although there is a GPU.",
        seen="The libraries bitsandbytes brings against the CUDA version torch was built for, the driver "
        "against that version, and in `whet doctor` the library itself, loaded after torch in a "
        "process of its own. The loader's error says which file it wants.",
        why="bitsandbytes carries one library for each CUDA version and picks by torch's. It fails when "
        "`BNB_CUDA_VERSION` names another, when torch is newer than bitsandbytes knows, when CUDA's "
        "runtime lies where the loader does not look, or when torch is a CPU build or newer than "
        "the driver.",
        fix="The finding holds the one command for the cause: `unset BNB_CUDA_VERSION`, an "
        "`LD_LIBRARY_PATH`, a package to install, or torch for an older CUDA. Without any: "
        "`model.precision=auto` needs no bitsandbytes.",
    ),
    Entry(
        id="E03",
        title="Stalled, refused or offline download",
        symptom="A download stands still, often close to its end; or a model is not found, gated, or "
        "refused.",
        seen="Weights are downloaded in a process that is watched: without a byte for 90 seconds it is "
        "ended and begun again over plain HTTP with one worker. Before that the plan looks at "
        "offline flags, at the room on the cache's disk and at whether it can be written; `whet "
        "doctor` asks the hub whose token it has.",
        why="Xet transfers can wait for ever on a lost connection. `HF_HUB_OFFLINE` from another "
        "project, a full disk, terms that were not accepted and an old `HF_TOKEN` that hides a good "
        "login look alike from outside.",
        fix="Start again: finished files are kept. `export HF_HUB_DISABLE_XET=1` avoids the stall from "
        "the start, `unset HF_HUB_OFFLINE` allows the network, `export HF_HOME=...` moves the "
        "cache, `hf auth login` gives a token. A local folder as `model.name` needs no network at "
        "all.",
    ),
    Entry(
        id="E04",
        title="Stale or broken kernel caches",
        symptom="A kernel fails to load after a crash or a full disk; the cache grows with every upgrade; "
        "or every start compiles again.",
        seen="Each entry of Triton's cache: whole or cut off, and for which Triton and GPU it was "
        "compiled. Whether the caches of Triton and torch.compile can be written.",
        why="Entries are named by source, options, versions and GPU, so those of another GPU are never "
        "used, and never removed either. An entry that a full disk cut off is found and cannot be "
        "loaded. A folder of another user cannot be written.",
        fix="Run the `rm -rf` line of the finding; what is needed is compiled again. Where it cannot be "
        "written, set `TRITON_CACHE_DIR` or `TORCHINDUCTOR_CACHE_DIR` to a folder of your own.",
    ),
    Entry(
        id="E05",
        title="llama.cpp crashes on quantised models",
        symptom="Export or chat ends with `SIGILL`, `SIGSEGV` or without a word as soon as a quantised GGUF "
        "is loaded or run, while 16-bit files work.",
        seen="`whet doctor` quantises, loads and runs a model of one layer in a process of its own. The "
        "step, the signal and the CPU instructions the build uses are in the finding. An export runs "
        "llama.cpp in processes of its own too (tokenizer trial, quantisation, proof): one that crashes, "
        "gives up or says nothing for ten minutes and more becomes this finding, with its log.",
        why="A native build takes every instruction that the CPU names. Some virtual machines name AMX "
        "and fault when it is used, which only the products of quantised weights do; a build from "
        "another machine can use instructions that this one lacks.",
        fix='Build again for any CPU: `CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF" pip install '
        "--force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python`.",
    ),
    Entry(
        id="E06",
        title="The run dies with SSH",
        symptom="A run is interrupted at the minute of a logout or a lost connection, although it was "
        "started detached, in tmux or with nohup; or all runs are gone after a restart.",
        seen="logind's `KillUserProcesses` and its exceptions, whether the user lingers, whether this "
        "process belongs to a login or to the user's own systemd, and the file system under "
        "`WHET_HOME`.",
        why="whet's workers lead sessions of their own and survive the terminal. logind can still end "
        "every process of a login, and the user's systemd ends with the last login unless the user "
        "lingers. A home in a tmpfs is memory.",
        fix="`loginctl enable-linger USER`, then `systemd-run --user --scope whet train RECIPE`. Put "
        "`WHET_HOME` on a disk. An interrupted run goes on by `whet resume RUN`.",
    ),
    Entry(
        id="E07",
        title="GPU busy, wrong, divided, failing or slowed",
        symptom="Out of memory at the start, steps slower than planned, training on the CPU, or results "
        "that differ from run to run.",
        seen="NVML, at every plan: processes and their memory, use, `CUDA_VISIBLE_DEVICES`, MIG, "
        "uncorrected memory errors and rows that wait for a reset, the power limit against the "
        "card's own, clocks held down by heat or supply, the compute mode.",
        why="Other people's processes; a GPU number of another machine; a card divided into slices; "
        "memory that fails; a limit set for another purpose.",
        fix="Name a free GPU (`export CUDA_VISIBLE_DEVICES=GPU-...`), wait, or run the `nvidia-smi` "
        "line of the finding. A whet run on the same GPU is no fault: runs wait for each other.",
    ),
    Entry(
        id="E08",
        title="Weights not initialised from the checkpoint",
        symptom='"Some weights were not initialized from the model checkpoint", and a model that answers '
        "nonsense or learns from a far too high loss.",
        seen="Missing and unexpected names when the weights are loaded, and weight files that are not there.",
        why="Another version of transformers names the parts differently, the checkpoint is of another "
        "class (an encoder, a classifier, an adapter), or a download is incomplete.",
        fix="Install a tested transformers, name the right model, or complete the download.",
    ),
    Entry(
        id="E09",
        title="The first minutes are slow",
        symptom="The first steps take many times as long as later ones; the second run of the same recipe "
        "starts at full speed.",
        seen="Which of whet's kernels are compiled for this GPU and this Triton, and "
        "`TRITON_ALWAYS_COMPILE`.",
        why="Triton compiles each kernel when it is first used and keeps it. A new GPU, a new Triton or "
        "a new shape starts cold.",
        fix="Wait, or run `whet doctor --kernels` beforehand; `unset TRITON_ALWAYS_COMPILE`. Keep "
        "`TRITON_CACHE_DIR` on a disk that outlives a restart.",
    ),
    Entry(
        id="E10",
        title="Locale errors, text that is not UTF-8",
        symptom='"A UTF-8 locale is required", `UnicodeEncodeError`, or question marks where letters were, '
        "mostly in notebooks and bare containers.",
        seen="The encodings this Python uses for files, output and file names.",
        why="A POSIX or Latin locale, or `PYTHONIOENCODING`, decides how text without a stated encoding "
        "is read. whet's own files are UTF-8 always; libraries' are not.",
        fix="`export LANG=C.UTF-8 LC_ALL=C.UTF-8 PYTHONUTF8=1` before Python starts; restart a "
        "notebook's kernel.",
    ),
    Entry(
        id="E11",
        title="The GPU could not be measured",
        symptom="A note at the end of the first run on a GPU; predicted times stay rough.",
        seen="The measurement that follows the first run on a GPU failed, or its file cannot be read.",
        why="Another process took the memory, or a full disk cut the file off.",
        fix="Nothing needs to be done: plans use typical figures of that GPU, and the next run measures "
        "again. Remove a broken file by the finding's `rm` line.",
    ),
    Entry(
        id="E12",
        title="Environment flags misspelt, outdated or at odds",
        symptom="A flag is set and nothing changes; a cache fills the wrong disk; everything is far too "
        "slow.",
        seen="Every flag that matters, by name and value, at each plan: names that are one or two slips "
        "away from a right one, old names, values that mean nothing, flags that contradict each "
        "other. `whet doctor --env` lists all that are set, who reads each and what it does now.",
        why="Nobody complains about a variable that nobody reads. Unsloth's flags are not read by whet: "
        "each is answered with whet's own way.",
        fix="Run the finding's line: the right name, or `unset`. What a run does belongs into its recipe.",
    ),
    Entry(
        id="E13",
        title="Several GPUs that cannot share a run, or reach each other slowly",
        symptom="`hardware.gpus` is refused; or NCCL ends with `unhandled system error`, hangs at the first "
        "reduction, or two GPUs are hardly faster than one.",
        seen="At plan time whether the number divides the rows of a step, the method runs on several "
        "GPUs, and so many of one kind are there. For a run on several GPUs, and in `whet doctor`: the size "
        "of /dev/shm, NCCL's switches, and through NVML how each pair of GPUs is joined.",
        why="Each GPU takes an equal share of a step's rows, so that the step stays the same. Containers "
        "have 64 MiB of shared memory unless they are given more. GPUs of different sockets, or with "
        "peer-to-peer off, send every gradient through host memory.",
        fix="The patch names a number that works. `docker run --shm-size=8g` or `--ipc=host`; "
        "`unset NCCL_P2P_DISABLE`; GPUs of one socket (`nvidia-smi topo -m`).",
    ),
)
