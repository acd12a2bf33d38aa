"""Run a file on images and keep its outputs; needs numpy and the runtime, not torch.

    python run_file.py RUNTIME FILE IMAGES.npy OUTPUTS.npy

Ten images at a time, one thread. For other_cpus.py, under emulation.
"""

import sys

import numpy as np

_BATCH = 10


def onnxruntime_outputs(path: str, images: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return [session.run(None, {name: part})[0] for part in parts]


def openvino_outputs(path: str, images: np.ndarray) -> list[np.ndarray]:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([_BATCH, *images.shape[1:]])
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    parts = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return [np.array(next(iter(request.infer([part]).values()))) for part in parts]


def main() -> None:
    runtime, path, images, outputs = sys.argv[1:5]
    values = np.load(images)
    if len(values) % _BATCH:
        raise SystemExit(f"Images must be a multiple of {_BATCH}, not {len(values)}.")
    run = {"onnxruntime": onnxruntime_outputs, "openvino": openvino_outputs}[runtime]
    np.save(outputs, np.concatenate(run(path, values)))


if __name__ == "__main__":
    main()
