"""The page of a model card, in jinja2; `model_card.py` says what it is filled with.

A line that ends in a backslash goes on in the next one. Tests run every block of code.
"""

PAGE = """\
# {{ cell.name }}

An image classifier, {{ facts.num_classes }} classes: a `{{ cell.student }}` distilled from a \
`{{ cell.teacher }}` without its training data. Method {{ title_of(cell.method) }}, arm \
{{ arm_title(cell.variant) }} ({{ arm }}); it answers as `{{ deploy }}`.

Input: float32 images (N, {{ channels }}, {{ side }}, {{ side }}) in [0, 1], any N. \
Normalisation is inside. Output: logits (N, {{ facts.num_classes }}).

{{ release.preprocessing }}

{% if release.class_names is none %}
Classes: numbers alone; the card of the student has no names of them.
{% else %}
Classes, in the order of the logits: {{ classes }}.
{% endif %}

## Results
{% if lineage.row is none %}
Not measured: the evaluation of this student was not at hand.
{% else %}
{% if interval is none %}
- Accuracy: not measured, there was no test data.
{% else %}
- Accuracy: {{ accuracy | to(".2f") }} % of {{ lineage.num_images | to(",") }} test images \
of {{ facts.dataset }} (95 % interval over images {{ interval }}), one student, last epoch.
{% if seeds | length < 2 %}
- Seeds: this one student; how much another seed changes was not measured.
{% else %}
- Seeds: {{ mean_text(estimate(seeds)) }} % over the {{ seeds | length }} students of this arm \
(mean and half of its 95 % t-interval).
{% endif %}
{% endif %}
{% if agreement is not none %}
- Agreement with the teacher: {{ agreement | to(".2f") }} % of \
{{ (pool.facts.num_holdout | to(",")) ~ " " if pool else "" }}held-out substitutes. It is no \
accuracy: the substitutes are not real images, and the teacher errs.
{% endif %}
{% endif %}

## Teacher
- `{{ cell.teacher }}`, content `{{ lineage.parent("teacher") or "unknown" }}`.
{% if not lineage.teacher %}
- Its accuracy: not at hand when this was exported.
{% elif lineage.teacher.facts.get("accuracy") is none %}
- Its accuracy on test data: not measured.
{% else %}
- Its accuracy on the test split: {{ lineage.teacher.facts.accuracy | to(".2f") }} %.
{% endif %}

## Substitution pool
{% if not pool %}
- Not at hand when this was exported; content `{{ lineage.parent("pool") }}`.
{% else %}
{% set begun, ended = pool.facts.num_images, facts.num_images %}
- {{ begun | to(",") }} images\
{{ "" if begun == ended else " when distillation began, %s at its end" % (ended | to(",")) }}; \
{{ pool.facts.num_holdout | to(",") }} more were held out.
- Source: {{ source }}.
{% if skipped %}
- Files left out: {{ skipped | join(", ") }}.
{% endif %}
- Shift, as the teacher labels the pool: total variation of the class proportions from even \
{{ variation | to(".3f") }} (0: even), mean confidence {{ pool.facts.confidence | to(".3f") }}.
- Class proportions: {{ proportions }}.
- Classes that it holds none of: {{ missing or "none" }}.
{% endif %}

## Confounder dictionary
{% if lineage.parent("dictionary") is none %}
- None: this arm uses no dictionary.
{% elif not dictionary %}
- Not at hand when this was exported; content `{{ lineage.parent("dictionary") }}`.
{% else %}
- {{ dictionary.num_prototypes }} prototypes ({{ dictionary.requested }} asked for) in the space \
of {{ dictionary.space }}, {{ dictionary.dimension }} values each, of \
{{ dictionary.num_predictions | to(",") }} predictions of `{{ dictionary.teacher }}`.
- Hash of prototypes and proportions: `{{ dictionary.dictionary_hash }}`.
{% if facts.get("rebuilt") %}
- Rebuilt {{ facts.rebuilt | length }} times while distilling: the last one is in phi.
{% endif %}
{% endif %}

## Bias compensation
{% if phi is none %}
- None to keep or to drop: {{ arm }}.
{% else %}
- Distilled with phi, fusion `{{ phi.fusion }}`, lambda {{ phi.weights }}. \
{% if deploy == "backbone" %}
Dropped here: the backbone answers alone, at no cost of its own.
{% else %}
Kept: phi and its dictionary are inside of every file here.
{% endif %}
{% endif %}

## Training
- {{ facts.num_steps | to(",") }} steps of {{ facts.batch_size }} images \
({{ (facts.num_steps * facts.batch_size) | to(",") }} in all)\
{{ "" if budget in (none, 1) else ", %s times the steps of the recipe" % (budget | to("g")) }}.
- Trained in {{ card.get("runtime", {}).get("precision", "unknown") }}, exported in fp32.

## Size and speed
{{ footprint_note(release.footprint) }}

{{ markdown(footprint_rows(release.footprint)) }}

## Data and licence
- Data of the teacher: {{ facts.dataset }}. Its licence: {{ release.terms.data_license }}.
- Licence of these weights: {{ release.terms.license }}.
- The student saw none of that data. What a teacher remembers of it can be in its substitutes, and \
so in the student: leaving the data out is no proof of privacy.

## Limits
- Distilled on substitutes: how it does on images of your own is not known until it is measured on \
them. It knows no other classes, and does not say when an image is of none.
- The pool is shifted as told above. Classes that it holds few or none of may be learnt badly, \
whatever the mean accuracy is.
- No calibration is claimed: softmax of the logits is no probability to rely on.\
{{ "" if error is none else " Measured here: expected calibration error %.1f %%." % error }}
{% if bias is not none %}
- Its predicted class proportions are {{ bias | to(".3f") }} away from the true ones on the test \
split (total variation; 0: the same, 1: disjoint).
{% endif %}

## How to load it
Run in this folder. Every block ends in logits.

{% if "pt2" in release.formats %}
PyTorch, with nothing of this project installed:
```python
import torch

model = torch.export.load("model.pt2").module()
images = torch.rand({{ shape }})  # yours: float32, in [0, 1]
logits = model(images)
```

{% endif %}
{% if "onnx" in release.formats %}
ONNX (opset {{ release.formats.onnx.get("opset") }}), with onnxruntime:
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.random.rand({{ shape }}).astype(np.float32)  # yours, in [0, 1]
(logits,) = session.run(None, {"images": images})
```

{% endif %}
{% if "mlflow" in release.formats %}
MLflow, in a program:
```python
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model("mlflow")
images = np.random.rand({{ shape }}).astype(np.float32)  # yours, in [0, 1]
logits = model.predict(images)
```

as a server, and a request to it:
```sh
mlflow models serve -m mlflow --env-manager local --host 127.0.0.1 --port 5001
```

```sh
curl -s -H "Content-Type: application/json" -d @mlflow/serving_input_example.json \
http://127.0.0.1:5001/invocations
```

{% endif %}
The weights alone, with kdci installed:
```python
import torch
from safetensors.torch import load_file

{% if deploy == "compensated" %}
from kdci import Compensation
{% endif %}
from kdci.models import build_backbone, load_state


def part(name):
    start = name + "."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


weights = load_file("weights.safetensors")
backbone = build_backbone("{{ facts.student }}", num_classes={{ facts.num_classes }}, \
channels={{ channels }}{{ chosen }})
load_state(backbone, part("backbone"))
mean = torch.tensor({{ facts.mean }}).view(1, -1, 1, 1)
std = torch.tensor({{ facts.std }}).view(1, -1, 1, 1)
images = torch.rand({{ shape }})  # yours: float32, in [0, 1]
logits = backbone.eval()((images - mean) / std).logits
{% if deploy == "compensated" %}
state = part("compensation")
phi = Compensation(
    state["prototypes_ND"],
    state["factors_N"],
    num_classes={{ facts.num_classes }},
    fusion="{{ phi.fusion }}",
    hidden_dim={{ phi.hidden_dim }},
)
phi.load_state_dict(state)
logits = phi.eval()(logits)
{% endif %}
```

## Provenance
- Commit: `{{ card.get("code", {}).get("revision", "unknown") }}`; params: \
`{{ card.get("params_hash", "unknown") }}`; seeds: {{ listed("seeds") or "unknown" }}.
- Distilled with {{ listed("versions") or "unknown versions" }}.
- `card.json` has the SHA-256 of every file here, `export.json` what this page says, for programs.

{{ markdown(provenance, num_names=none) }}
"""
