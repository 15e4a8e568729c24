"""How an export is loaded: the code of its model card, one block a format. Tests run it."""

from __future__ import annotations

from kdci.config.catalog import BACKBONE_NAMES
from kdci.exporting.formats import INPUT
from kdci.exporting.release import Release

WEIGHTS_FILE = "weights.safetensors"
PORT = 5001


def loading_lines(release: Release) -> list[str]:
    """Return the lines of the model card; paths are relative to the export."""
    lines = ["Run in this folder. Every block ends in logits."]
    blocks = {"pt2": _pt2, "onnx": _onnx, "mlflow": _mlflow}
    for name, block in blocks.items():
        if name in release.formats:
            lines += ["", *block(release)]
    return [*lines, "", *_weights(release)]


def _code(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```"]


def _shape(release: Release) -> str:
    return ", ".join(str(number) for number in (2, *release.shape))


def _pt2(release: Release) -> list[str]:
    return [
        "PyTorch, with nothing of this project installed:",
        *_code(
            "python",
            "import torch",
            "",
            'model = torch.export.load("model.pt2").module()',
            f"images = torch.rand({_shape(release)})  # yours: float32, in [0, 1]",
            "logits = model(images)",
        ),
    ]


def _onnx(release: Release) -> list[str]:
    opset = release.formats["onnx"].get("opset")
    return [
        f"ONNX (opset {opset}), with onnxruntime:",
        *_code(
            "python",
            "import numpy as np",
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f"images = np.random.rand({_shape(release)}).astype(np.float32)  # yours, in [0, 1]",
            f'(logits,) = session.run(None, {{"{INPUT}": images}})',
        ),
    ]


def _mlflow(release: Release) -> list[str]:
    return [
        "MLflow, in a program:",
        *_code(
            "python",
            "import mlflow",
            "import numpy as np",
            "",
            'model = mlflow.pyfunc.load_model("mlflow")',
            f"images = np.random.rand({_shape(release)}).astype(np.float32)  # yours, in [0, 1]",
            "logits = model.predict(images)",
        ),
        "",
        "as a server, and a request to it:",
        *_code(
            "sh",
            f"mlflow models serve -m mlflow --env-manager local --host 127.0.0.1 --port {PORT}",
        ),
        "",
        *_code(
            "sh",
            'curl -s -H "Content-Type: application/json" -d @mlflow/serving_input_example.json '
            f"http://127.0.0.1:{PORT}/invocations",
        ),
    ]


def _weights(release: Release) -> list[str]:
    """Return how the plain weights go into this project's modules."""
    facts = release.facts
    stem = facts.get("stem", "cifar")
    chosen = "" if stem == "cifar" else f', stem="{stem}"'
    if facts["student"] not in BACKBONE_NAMES:  # some of another library's are built for one size
        chosen += f", image_size={facts['image_size']}"
    compensated = release.deploy == "compensated"
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "",
        *(["from kdci import Compensation"] if compensated else []),
        "from kdci.models import build_backbone, load_state",
        "",
        "",
        "def part(name):",
        '    start = name + "."',
        "    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}",
        "",
        "",
        f'weights = load_file("{WEIGHTS_FILE}")',
        f'backbone = build_backbone("{facts["student"]}", num_classes={facts["num_classes"]}, '
        f"channels={facts['channels']}{chosen})",
        'load_state(backbone, part("backbone"))',
        f"mean = torch.tensor({list(facts['mean'])}).view(1, -1, 1, 1)",
        f"std = torch.tensor({list(facts['std'])}).view(1, -1, 1, 1)",
        f"images = torch.rand({_shape(release)})  # yours: float32, in [0, 1]",
        "logits = backbone.eval()((images - mean) / std).logits",
    ]
    if compensated:
        lines += _phi(release)
    return ["The weights alone, with kdci installed:", *_code("python", *lines)]


def _phi(release: Release) -> list[str]:
    phi = release.facts["compensation"]
    return [
        'state = part("compensation")',
        "phi = Compensation(",
        '    state["prototypes_ND"],',
        '    state["factors_N"],',
        f"    num_classes={release.facts['num_classes']},",
        f'    fusion="{phi["fusion"]}",',
        f"    hidden_dim={phi['hidden_dim']},",
        ")",
        "phi.load_state_dict(state)",
        "logits = phi.eval()(logits)",
    ]
