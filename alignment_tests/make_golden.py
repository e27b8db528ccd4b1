"""``python -m alignment_tests.make_golden``: write fixtures/golden/structure.json from ``torch_ref``.

Run it only after ``pytest -k golden`` has passed: what is written becomes the expectation.
"""

from __future__ import annotations

import json
from typing import Any

import torch

import torch_ref
from fixtures.config import config_names, load_config
from fixtures.structure import COUNTER, FORMS, GFLOPS_FORMS, TABLE, digests
from torch_ref.info import conv_macs, entries

# Convolutions over the gathered map of the high stage, whose size is rounded up.
HIGH_STAGE = ("neck.high_IFM.", "neck.conv_1x1_n", "neck.Inject_n4.global_", "neck.Inject_n5.global_")


def structure(name: str) -> dict[str, Any]:
    """One configuration's row of the table that ``fixtures.structure`` reads."""
    row: dict[str, Any] = {form: {"parameters": {}} for form in FORMS}
    for classes in (10, 80):
        for form, model in forms(name, classes).items():
            row[form]["parameters"][str(classes)] = sum(p.numel() for p in model.parameters())
            row[form]["digests"] = digests(entries(model), classes)
            row[form]["counters"] = sum(key.endswith(COUNTER) for key, _ in entries(model))
            if form in GFLOPS_FORMS:
                macs = conv_macs(model, (640, 640))
                row[form].setdefault("gflops_640", {})[str(classes)] = 2e-9 * sum(macs.values())
                row["high_stage_gflops_640"] = 2e-9 * sum(n for path, n in macs.items() if path.startswith(HIGH_STAGE))
    return row


def forms(name: str, classes: int) -> dict[str, torch_ref.GoldYolo]:
    """The model by form, without values: only keys and shapes matter."""
    with torch.device("meta"):
        model = torch_ref.build_model(load_config(name, classes))
        return dict(zip(FORMS, (model, torch_ref.fuse(model, fold_norms=False), torch_ref.fuse(model)), strict=True))


def main() -> None:
    TABLE.write_text(json.dumps({name: structure(name) for name in config_names()}, indent=1) + "\n", encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
