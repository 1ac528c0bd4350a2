# The same targets here and in CI.
.PHONY: setup test lint slow wheel demo ci
setup: ; scripts/setup
test: ; scripts/test
lint: setup ; .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
slow: ; scripts/test -m slow
wheel: ; .ci/wheel
demo: ; scripts/demo
ci: ; .ci/run
