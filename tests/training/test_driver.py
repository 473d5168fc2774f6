from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from ureca.errors import ImageError
from ureca.training.driver import users_error


def test_error_for_the_user_is_found_in_what_ray_train_wraps_it_in() -> None:
    lost = ImageError("photo.jpg: not there. Copy it back.")
    hung_up = RuntimeError("connection closed by peer")
    assert users_error(WorkerGroupError("rank 1", {0: hung_up, 1: lost})) is lost
    assert users_error(WorkerGroupError("rank 1", {1: UserExceptionWithTraceback(lost, "…")})) is lost


def test_a_fault_of_ours_stays_what_it_is() -> None:
    failed = WorkerGroupError("rank 0", {0: RuntimeError("shapes differ")})
    assert users_error(failed) is failed
