"""Every environment flag that matters to fine-tuning: who reads it, what it does, what to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..settings import OWN_FLAGS, OwnFlag

Kind = Literal["switch", "value", "secret"]


@dataclass(frozen=True)
class Flag:
    """One variable, or a family of them.

    Args:
        name: exact, or with a ``*`` at its end.
        reader: who reads it.
        does: its effect; ``{value}`` stands for what it is set to. For a switch: its effect when on.
        off: a switch's effect when it is set and off.
        advice: what to know or do; empty where nothing is to be said.
        kind: a secret's value is never shown.
        instead: the name that replaces it; the flag is then deprecated.
        ignored: nobody reads the old name any more.
        command: what to type instead; for flags of other tools.
    """

    name: str
    reader: str
    does: str
    off: str = "off, as without it"
    advice: str = ""
    kind: Kind = "value"
    instead: str | None = None
    ignored: bool = False
    command: str | None = None


GPU = (
    Flag("CUDA_VISIBLE_DEVICES", "CUDA", "only these GPUs exist: {value}",
         advice="UUIDs (nvidia-smi -L) name the same GPU whatever the order; indices do not."),
    Flag("CUDA_DEVICE_ORDER", "CUDA", "GPUs are numbered by {value}",
         advice="PCI_BUS_ID numbers as nvidia-smi does; whet itself goes by UUID."),
    Flag("CUDA_LAUNCH_BLOCKING", "CUDA", "the host waits for each kernel: errors name the right line, "
         "training is far slower", kind="switch", advice="For hunting one error; unset it afterwards."),
    Flag("PYTORCH_ALLOC_CONF", "torch", "allocator: {value}",
         advice="expandable_segments:True helps against fragmentation with uneven rows."),
    Flag("PYTORCH_CUDA_ALLOC_CONF", "torch", "allocator: {value}", instead="PYTORCH_ALLOC_CONF"),
    Flag("TORCH_COMPILE_DISABLE", "torch", "torch.compile does nothing", kind="switch",
         advice="whet's fast path does not use torch.compile, so nothing changes for it."),
    Flag("TORCHINDUCTOR_CACHE_DIR", "torch.compile", "compiled graphs lie in {value}"),
    Flag("TORCHINDUCTOR_*", "torch.compile", "set to {value}",
         advice="whet's fast path does not use torch.compile."),
    Flag("TRITON_INTERPRET", "Triton", "kernels run in Python, thousands of times slower", kind="switch",
         advice="For debugging kernels only."),
    Flag("TRITON_CACHE_DIR", "Triton", "compiled kernels lie in {value}",
         advice="Keep it on a local disk that outlives a reboot."),
    Flag("TRITON_ALWAYS_COMPILE", "Triton", "every process compiles every kernel anew", kind="switch"),
    Flag("BNB_CUDA_VERSION", "bitsandbytes", "its library for CUDA {value} is loaded, whatever torch has",
         advice="Needed only where the automatic choice fails."),
    Flag("LD_LIBRARY_PATH", "the loader", "searched before torch's own CUDA libraries: {value}",
         advice="CUDA folders in it can replace the libraries torch was built with."),
    Flag("NCCL_*", "NCCL", "set to {value}", advice="Of use with several GPUs only."),
)  # fmt: skip

HUB = (
    Flag("HF_HOME", "Hugging Face", "token, models and data sets lie in {value}"),
    Flag("HF_HUB_CACHE", "Hugging Face", "downloads lie in {value}"),
    Flag("HUGGINGFACE_HUB_CACHE", "Hugging Face", "downloads lie in {value}", instead="HF_HUB_CACHE"),
    Flag("TRANSFORMERS_CACHE", "nobody since transformers 5", "nothing", instead="HF_HOME", ignored=True),
    Flag("HF_HUB_OFFLINE", "Hugging Face, whet", "the hub is never asked: only cached files are found",
         kind="switch"),
    Flag("TRANSFORMERS_OFFLINE", "Hugging Face", "as HF_HUB_OFFLINE", kind="switch",
         instead="HF_HUB_OFFLINE"),
    Flag("HF_DATASETS_OFFLINE", "datasets", "data sets come from the cache alone", kind="switch"),
    Flag("HF_TOKEN", "Hugging Face", "who you are to the hub; goes before a stored login", kind="secret"),
    Flag("HUGGING_FACE_HUB_TOKEN", "Hugging Face", "as HF_TOKEN", kind="secret", instead="HF_TOKEN"),
    Flag("HF_HUB_DISABLE_IMPLICIT_TOKEN", "Hugging Face", "the token is sent only where code asks for it",
         kind="switch"),
    Flag("HF_HUB_DISABLE_XET", "Hugging Face", "downloads go over plain HTTP", kind="switch",
         advice="Slower, and it does not stall where Xet does."),
    Flag("HF_XET_HIGH_PERFORMANCE", "Hugging Face", "downloads take all bandwidth and cores", kind="switch"),
    Flag("HF_HUB_ENABLE_HF_TRANSFER", "nobody since huggingface_hub 1.0", "nothing", kind="switch",
         instead="HF_XET_HIGH_PERFORMANCE", ignored=True),
    Flag("HF_ENDPOINT", "Hugging Face", "{value} is the hub"),
    Flag("HF_XET_*", "Hugging Face's Xet client", "set to {value}"),
    Flag("HF_*", "nobody whet knows of", "nothing, where it is mistyped; set to {value}",
         advice="huggingface.co/docs lists the names that are read."),
    Flag("TOKENIZERS_PARALLELISM", "tokenizers", "rows are tokenised on several cores", kind="switch",
         off="rows are tokenised on one core", advice="whet's own workers set it as they need it."),
)  # fmt: skip

REST = (
    Flag("OMP_NUM_THREADS", "torch, llama.cpp", "threads that compute on the CPU: {value}",
         advice="training.threads in the recipe goes before it."),
    Flag("ACCELERATE_*", "Accelerate", "set to {value}",
         advice="The recipe decides precision and devices; leave these to `accelerate launch`."),
    Flag("WANDB_API_KEY", "Weights & Biases", "your key", kind="secret",
         advice="whet reports to nobody; a run's events are in its folder."),
    Flag("WANDB_*", "Weights & Biases", "set to {value}",
         advice="whet reports to nobody; a run's events are in its folder."),
    Flag("LLAMA_CPP_LIB_PATH", "llama-cpp-python", "llama.cpp is loaded from {value}",
         advice="It must be the version llama-cpp-python was built with."),
    Flag("NO_COLOR", "whet", "no colours"),
    Flag("TERM", "whet", "what the terminal can do: {value}"),
    Flag("LANG", "Python", "language and encoding: {value}"),
    Flag("LC_ALL", "Python", "goes before LANG: {value}"),
    Flag("LC_CTYPE", "Python", "encoding: {value}"),
    Flag("PYTHONUTF8", "Python", "text is UTF-8 whatever the locale says", kind="switch",
         off="text is what the locale says"),
    Flag("PYTHONIOENCODING", "Python", "encoding of standard input and output: {value}"),
)  # fmt: skip

_REFERENCE = "export WHET_KERNELS=reference"
_PLAIN_HTTP = "export HF_HUB_DISABLE_XET=1"
_LONG = "Long rows need no switch: the loss is computed in pieces, and the planner sizes them."

UNSLOTH = tuple(
    Flag(name, "Unsloth; not whet", "nothing here", advice=advice, command=command)
    for name, advice, command in (
        ("UNSLOTH_COMPILE_DISABLE", "Against device-side asserts and wrong kernels: run the plain-torch "
         "references.", _REFERENCE),
        ("UNSLOTH_DISABLE_FAST_GENERATION", "Answers can be computed by the plain-torch references too.",
         _REFERENCE),
        ("UNSLOTH_VLLM_STANDBY", "whet runs no second engine beside training: there is no memory to share.",
         None),
        ("UNSLOTH_STABLE_DOWNLOADS", "A download that stands still is started again over plain HTTP with one "
         "worker, by itself; this does so from the start.", _PLAIN_HTTP),
        ("UNSLOTH_RETURN_LOGITS", "The loss never makes all logits; evaluation and `whet chat` compute those "
         "they need.", None),
        ("UNSLOTH_CE_LOSS_TARGET_GB", _LONG, None),
        ("UNSLOTH_CE_LOSS_N_CHUNKS", _LONG, None),
        ("UNSLOTH_TILED_MLP", "Recipe: training.gradient_checkpointing; `whet plan` names the longest row "
         "that fits.", None),
        ("UNSLOTH_FORCE_FLOAT32", "Recipe: training.precision=fp32.", None),
        ("UNSLOTH_DISABLE_AUTO_PADDING_FREE", "Recipe: method.packing; documents never see each other.",
         None),
        ("UNSLOTH_MOE_BACKEND", "One grouped kernel runs all experts; its plain-torch reference is the other "
         "way.", _REFERENCE),
        ("UNSLOTH_LLAMA_CPP_PATH", "whet uses llama-cpp-python; LLAMA_CPP_LIB_PATH names another build of "
         "its library.", None),
        ("UNSLOTH_ALLOW_CPU", "whet trains on a CPU wherever there is no GPU; nothing to allow.", None),
        ("UNSLOTH_USE_MODELSCOPE", "Only the Hugging Face hub is asked: download the model yourself and give "
         "its folder as model.name.", None),
        ("UNSLOTH_DISABLE_STATISTICS", "whet sends nothing to anybody.", None),
        ("UNSLOTH_*", "whet reads none of Unsloth's flags; its recipe says what a run does.", None),
    )
)  # fmt: skip


def _own(flag: OwnFlag) -> Flag:
    if flag.choices == ("switch",):
        return Flag(flag.name, "whet", flag.meaning, kind="switch")
    if flag.choices == ("secret",):
        return Flag(flag.name, "whet", flag.meaning, kind="secret")
    return Flag(flag.name, "whet", f"{flag.meaning}: {{value}}")


FLAGS: tuple[Flag, ...] = (*(_own(flag) for flag in OWN_FLAGS), *GPU, *HUB, *REST, *UNSLOTH)
EXACT_NAMES = tuple(flag.name for flag in FLAGS if not flag.name.endswith("*"))

ALIASES = {
    "HUGGINGFACE_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_HUB_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_API_KEY": "HF_TOKEN",
    "HF_API_TOKEN": "HF_TOKEN",
    "HF_API_KEY": "HF_TOKEN",
    "HF_AUTH_TOKEN": "HF_TOKEN",
    "HF_OFFLINE": "HF_HUB_OFFLINE",
    "HF_CACHE": "HF_HUB_CACHE",
    "HF_CACHE_DIR": "HF_HUB_CACHE",
    "CUDA_VISIBLE_GPUS": "CUDA_VISIBLE_DEVICES",
    "TRITON_CACHE": "TRITON_CACHE_DIR",
    "HF_DISABLE_XET": "HF_HUB_DISABLE_XET",
    "OMP_THREADS": "OMP_NUM_THREADS",
    "LLAMA_CPP_LIB": "LLAMA_CPP_LIB_PATH",
    "WHET_LOG_LEVEL": "WHET_LOG",
}
"""Names that people set and nobody reads, too far from the right one for an edit distance."""

KNOWN_BESIDE = {
    "HF_ASSETS_CACHE", "HF_DAGSHUB_LOG_ARTIFACTS", "HF_DAGSHUB_MODEL_NAME", "HF_DATASETS_CACHE",
    "HF_DATASETS_STACK_MULTIPROCESSING_DOWNLOAD_PROGRESS_BARS", "HF_DEACTIVATE_ASYNC_LOAD",
    "HF_DVCLIVE_LOG_MODEL", "HF_EDITOR", "HF_MLFLOW_LOG_ARTIFACTS", "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "HF_DEBUG",
    "HF_DATASETS_DOWNLOADED_DATASETS_PATH", "HF_DATASETS_EXTRACTED_DATASETS_PATH",
    "HF_DATASETS_IN_MEMORY_MAX_SIZE",
    "HF_HUB_DISABLE_EXPERIMENTAL_WARNING", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_SHARED_BLOBS",
    "HF_HUB_DISABLE_SYMLINKS", "HF_HUB_DISABLE_SYMLINKS_WARNING", "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_VERBOSITY",
    "HF_INFERENCE_ENDPOINT", "HF_MODULES_CACHE", "HF_STORED_TOKENS_PATH", "HF_TOKEN_PATH", "HF_XET_CACHE",
    "HF_UPDATE_DOWNLOAD_COUNTS", "HF_HUB_USER_AGENT_ORIGIN", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH",
    "CUDA_CACHE_DISABLE", "CUDA_MODULE_LOADING", "CUDA_VERSION", "MKL_NUM_THREADS", "DYLD_LIBRARY_PATH",
    "PYTORCH_HIP_ALLOC_CONF", "TRITON_HOME", "TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR", "BNB_ROCM_VERSION",
    "TRANSFORMERS_VERBOSITY", "DIFFUSERS_CACHE", "DIFFUSERS_OFFLINE", "WHET_WHEELS",
}  # fmt: skip
"""Right names that need no line of their own and are no misspelling of another."""
