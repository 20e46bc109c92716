# Two commands: `make book` and `make test`. Both set up `.venv` first, which costs a second when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
THREADS ?= 1
WORKERS ?= 2
FOLDER ?= notebooks

# Threads that wait by spinning slow each other down a hundredfold where other work shares the cores
export OMP_WAIT_POLICY ?= PASSIVE
# The library is compiled once, not by each of the hundred processes that the book and the tests start
export PYTHONDONTWRITEBYTECODE =

NOTEBOOKS := $(wildcard notebooks/[0-9]*.py)
TEMPLATES := $(wildcard notebooks/experiments/e*.py)

.PHONY: help book offline pdf latex test beside test-cluster chaos lint reproduce studies experiment bench lab sync clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: install 3.11 or newer, or call make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[book,dev,bench,likelihood,clip,runs]'
	touch $@

book: $(STAMP) ## run the digits reproduction and build the book to _build/html/index.html
	OMP_NUM_THREADS=$(THREADS) $(BIN)/jupyter-book build . -W --keep-going
	@echo "open _build/html/index.html"

offline: book ## the built book as one file that opens without a network: _build/diffinf-book.zip
	rm -f _build/diffinf-book.zip && $(BIN)/python -m zipfile -c _build/diffinf-book.zip _build/html
	@du -h _build/diffinf-book.zip

# The doctrees of the site hold what its cells gave, for print too: no cell runs again. A copy of them, because LaTeX's
# settings in the environment would make the next build of the site start anew.
pdf: latex book ## the book as one PDF, where LaTeX is installed: _build/diffinf-book.pdf
	rm -rf _build/pdf && mkdir -p _build/pdf/_build && cp -R _build/.doctrees _build/pdf/_build
	$(BIN)/jupyter-book build . --path-output _build/pdf --builder latex -W --keep-going
	$(MAKE) -C _build/pdf/_build/latex LATEXMKOPTS='-silent -halt-on-error'
	cp _build/pdf/_build/latex/diffinf-book.pdf _build && du -h _build/diffinf-book.pdf

LATEX := latexmk texlive-luatex texlive-latex-extra fontconfig fonts-texgyre fonts-texgyre-math fonts-dejavu fonts-freefont-otf
latex:
	@(for tool in latexmk lualatex kpsewhich fc-list; do command -v $$tool || exit 1; done; \
	  for font in "DejaVu Sans" "DejaVu Sans Mono" FreeSerif; do fc-list "$$font" | grep . || exit 1; done; \
	  kpsewhich tabulary.sty texgyrepagella-math.otf) >/dev/null || \
	  { echo "the PDF needs LaTeX, which is not complete here; on Debian: apt install $(LATEX)"; exit 2; }

lint: $(STAMP) ## ruff, mypy, and the words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The notebooks run once here, while the book is built; nbval then runs them as tests with a fresh kernel each, on the
# stages that the build left in runs/, so no model is trained twice. The build keeps one core busy, so some of the tests run
# beside it; the others run with nbval. They start in the order of tests/conftest.py, long files first.
BESIDE := tests/studies tests/attribution tests/evaluation tests/runs
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --durations=20 --dist loadfile --no-loadscope-reorder
test: lint ## lint, every test, the notebooks through nbval, the built pages
	rm -rf _build/html
	$(MAKE) --jobs=2 --output-sync=target book beside
	DIFFINF_REQUIRE_BOOK=1 $(PYTEST) --nbval-lax notebooks/*.ipynb tests $(BESIDE:%=--ignore=%) -n $(WORKERS)

beside: $(STAMP)
	$(PYTEST) $(BESIDE) -n 1

test-cluster: $(STAMP) ## an experiment through a Slurm of one node, where Debian's slurm-wlm and munge are installed
	PYTHON=$(BIN)/python bash tests/cluster/slurm.sh

KILLS ?= 200
chaos: $(STAMP) ## an experiment killed at random (KILLS=200) always ends with the same bits: an hour or two
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python tests/chaos/kills.py --kills $(KILLS)

experiment: $(STAMP) ## PRESET=… [SHARDS=… STUDIES=… PROFILE=… DRY=1]: its ground truth and studies through Snakemake
	$(BIN)/diffinf experiment $(or $(PRESET),$(error give PRESET=NAME, such as PRESET=digits)) \
	  $(if $(SHARDS),--shards $(SHARDS)) $(if $(STUDIES),--studies $(STUDIES)) $(if $(PROFILE),--profile $(PROFILE)) \
	  $(if $(DRY),--dry-run) $(EXPERIMENT)

reproduce: $(STAMP) ## retrain the digits ground truth and write its bundle; can be killed and called again
	$(BIN)/diffinf reproduce digits

STUDIES := e04_draws e05_methods e06_curvatures e07_compression e08_removal e09_timesteps e10_ladder e11_rectify \
  e12_decomposition e13_offers e14_protocol e15_solves e16_measuring
studies: reproduce ## after the ground truth: every study of the book, a bundle each; can be killed and called again
	for name in $(STUDIES); do $(BIN)/diffinf launch $$name -p preset=digits || exit 1; done
	$(BIN)/diffinf launch e10_ladder -p preset=digits -p rungs=budget
	$(BIN)/diffinf launch e11_rectify -p preset=digits -p attributed=elbo -p methods=ekfac,kfac,cg,trak -p bundle=digits-elbo-rectify
	$(BIN)/diffinf launch e16_measuring -p preset=digits -p measurement=elbo -p subsets=32 -p seeds=1 -p reference=1024 \
	  -p counts=8,32,128,256 -p 'rules=["elbo", "elbo, antithetic", "stratified, antithetic"]'

bench: $(STAMP) ## measure the engine beside curvlinops and kronfluence: about an hour, on a machine that does nothing else
	for name in "fit --case digits" "fit --case cifar-small" gradients "gradients --grouping" covariance end_to_end growth memory images \
	  quality projection planner training; do OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.$$name || exit 1; done

lab: $(STAMP) ## JupyterLab on the notebooks; it asks nothing of the network
	JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/.jupyter" $(BIN)/jupyter lab $(FOLDER) $(LAB)

# JupyterLab writes the kernel's language into a notebook that lacks it, and then asks whether to save
LANGUAGE = import json; from ipykernel.ipkernel import IPythonKernel as k; print(json.dumps({"language_info": k.language_info}))
sync: $(STAMP) ## derive every .ipynb from its .py, without outputs
	language=$$($(BIN)/python -c '$(LANGUAGE)') && for file in $(NOTEBOOKS) $(TEMPLATES); do \
	  $(BIN)/jupytext --quiet --update --to ipynb --update-metadata "$$language" $$file || exit 1; done

clean: ## delete the built book and the installation; runs/ and data/ stay
	rm -rf _build .venv
