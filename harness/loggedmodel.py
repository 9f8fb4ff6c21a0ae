"""The trained network as MLflow keeps models: in the pt2 format, a traced graph and its weights, without pickle."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from mlflow.models import Model, infer_signature

if TYPE_CHECKING:
    from torch import Tensor, nn


def log(client: MlflowClient, run: Run, module: nn.Module, inputs: Tensor, step: int) -> None:
    """Log a module as `model` of a run, in place of one that it has.

    The same files go to a logged model of the experiment, where MLflow keeps models, and to the run's own artifacts, where
    people look for them. `inputs` (B, features) are its example.
    """
    if find_spec("pytorch_lightning"):  # where that is installed, mlflow imports it, and it torchvision
        from harness.mirrors import torchvision_module

        torchvision_module()
    import mlflow.pytorch

    experiment, run_id = run.info.experiment_id, run.info.run_id
    for before in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(before.model_id)  # of a process that was killed after it
    logged = client.create_logged_model(experiment, "model", source_run_id=run_id)
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/model"
        mlflow.pytorch.save_model(
            module,
            place,
            mlflow_model=Model("model", run_id=run_id, model_id=logged.model_id),
            signature=infer_signature(inputs.numpy(), module(inputs).detach().numpy()),
            input_example=inputs.numpy(),
            pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],
            serialization_format="pt2",
        )
        client.log_model_artifacts(logged.model_id, place)
        client.log_artifacts(run_id, place, "model")
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
