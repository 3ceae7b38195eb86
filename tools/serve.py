"""Answer photos over HTTP, with a page for people.

    python -m tools.serve                                   # http://127.0.0.1:8000
    python -m tools.serve --config configs/serve/demo.toml  # the networks of `make demo`
    curl -F photo=@photo.jpg http://127.0.0.1:8000/predict

POST /predict (field `photo`), /predict_animal and /embed (`photos`), /explain (Grad-CAM as PNG);
GET / (the page), /health, /model_card, /metrics (Prometheus) and /openapi.json. Prints one line per
request to stderr. Photos are kept nowhere. Ctrl-C answers what was accepted and stops; a second one
stops at once. There is no authentication: leave HOST as it is, or put a proxy with one in front.
Needs: python -m pip install ".[serve]"
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Annotated, Literal

from petface.errors import UserError, install_line, outlive_reader, run_script  # isort: split

import torch

from petface.devices import choose_device, num_cores
from petface.inference.two_stage import TwoStageInference
from petface.settings import NonNegative, Positive, PositiveFloat, Range, read_settings

# ---- Models ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # or a bundle of exported models
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt; "" = the bundle's, or none
IDENTITY_CHECKPOINT: str = ""  # best.pt of train_identity.py; "" = nobody can ask "who is this?"
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  # fp32 = as inference_engine.py answers

# ---- Address ----
HOST: str = "127.0.0.1"  # this machine alone; 0.0.0.0 = every network, without authentication
PORT: Annotated[int, Range(0, 65_535)] = 8000  # 0 = a free one, printed
ALLOWED_HOSTS: tuple[str, ...] = ()  # more names in Host headers; () = this machine's, else any

# ---- Limits ----
MAX_BATCH: Positive = 64  # photos computed together; 1 = each alone
MAX_QUEUE: Positive = 128  # photos taken in and not yet answered; beyond: 503
MAX_BODY_MB: PositiveFloat = 20.0  # of 1,000,000 bytes; beyond: 413
MAX_PHOTOS: Positive = 8  # of one animal; never more than MAX_QUEUE
MAX_PIXELS_PER_PHOTO: Positive = 50_000_000  # beyond: 413, before it is decoded
MAX_PIXELS_AT_ONCE: Positive = 400_000_000  # of all photos taken in; beyond: 503
HEAD_TIMEOUT_S: PositiveFloat = 10.0  # for the head of a request; beyond: closed
BODY_TIMEOUT_S: PositiveFloat = 30.0  # for the whole body; beyond: 408
ANSWER_TIMEOUT_S: PositiveFloat = 20.0  # from the body to the answer; beyond: 503
NUM_WORKERS: int = -1  # threads that compute; -1 = on a GPU two, else all cores but one
NUM_THREADS: NonNegative = 1  # of each worker on a CPU; 0 = as torch chooses


def main() -> None:
    s = read_settings(sys.modules[__name__])
    try:
        from petface.identity.embed import load_embedder
        from petface.serving.app import Service, make_app
        from petface.serving.requests import Limits
        from petface.serving.server import bind, serve
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: {install_line('serve')}") from None
    limits = Limits(
        max_batch=s.MAX_BATCH,
        max_queue=s.MAX_QUEUE,
        max_photos=min(s.MAX_PHOTOS, s.MAX_QUEUE),
        max_pixels=s.MAX_PIXELS_PER_PHOTO,
        max_pixels_at_once=max(s.MAX_PIXELS_AT_ONCE, s.MAX_PIXELS_PER_PHOTO),
        max_body_mb=s.MAX_BODY_MB,
        max_uploads_mb=max(256.0, s.MAX_BODY_MB),
        head_timeout_s=s.HEAD_TIMEOUT_S,
        body_timeout_s=s.BODY_TIMEOUT_S,
        answer_timeout_s=s.ANSWER_TIMEOUT_S,
    )
    outlive_reader()
    print(s.provenance())
    sys.setswitchinterval(5e-4)  # s; usually 5e-3, which the event loop waits for each computation
    taken = bind(s.HOST, s.PORT)
    if s.NUM_THREADS:
        torch.set_num_threads(s.NUM_THREADS)
    specialists = s.own_folder("STAGE2_FOLDER", of="STAGE1_CHECKPOINT")
    engine = TwoStageInference(s.STAGE1_CHECKPOINT, specialists, s.DEVICE, s.PRECISION)
    engine.load_all()
    identity, hosts = s.IDENTITY_CHECKPOINT, s.ALLOWED_HOSTS
    embedder = load_embedder(identity, engine.options) if identity else None
    address, port = taken.getsockname()[:2]
    if ipaddress.ip_address(address).is_loopback:
        hosts = (*hosts, "localhost", "127.0.0.1", "[::1]", s.HOST)
    else:
        print("WARNING: the whole network reaches HOST; no authentication", file=sys.stderr)
    usual = max(1, num_cores() - 1) if choose_device(s.DEVICE).type == "cpu" else 2
    num_workers = usual if s.NUM_WORKERS < 0 else max(1, s.NUM_WORKERS)
    service = Service(engine, limits, embedder, num_workers=num_workers, num_decoders=num_cores())
    print(f"ready: http://{f'[{s.HOST}]' if ':' in s.HOST else s.HOST}:{port}", flush=True)
    serve(make_app(service, hosts), taken, limits)


if __name__ == "__main__":
    run_script(main)
