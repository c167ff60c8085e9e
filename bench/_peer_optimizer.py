"""The transformer optimizer of ONNX Runtime on a graph; run in the peers' environment.

Usage: python _peer_optimizer.py MODEL.onnx OUT.onnx CONFIG.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onnxruntime.transformers.optimizer import optimize_model


def main() -> None:
    source, output, config_file = sys.argv[1:]
    config = json.loads(Path(config_file).read_text("utf-8"))
    optimized = optimize_model(
        source,
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    optimized.save_model_to_file(output)
    print(json.dumps({"fused": optimized.get_fused_operator_statistics()}))


if __name__ == "__main__":
    main()
