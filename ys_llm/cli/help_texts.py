"""What `ys help` says beside the flags: examples, and the rules of each verb."""

DESCRIPTION = "Train, study and talk to small language models whose memory is a state."
OVERVIEW = """\
examples:
  ys train                                      train on training_data/, or go on with it
  ys run --prompt "Tell me a story about a fox."
  ys help train

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no model yet, 4 back end down,
5 training diverged; training saves before it is stopped: 130 by Ctrl-C, 143 by SIGTERM, 129 by a
terminal that closes
"""
TRAIN = """\
examples:
  ys train --data my_texts --run mine           train on a folder of your own text
  ys train                                      the same words again: go on where it stopped
  ys train --dry-run                            what it would cost: parameters, memory, time
  ys train --from 400                           go back to the checkpoint of step 400
  ys train --run mine --new-data poems          its model, trained on in a new run, mine-poems
  ys train clean                                remove the model, then train anew
  ys train clean all --dry-run                  what would go: its tokenizer and caches too
  ys train --set train.learning_rate=1e-3 --set model.n_layers=6

A run is the folder runs/NAME. Without --config, a run that exists goes on with its own saved
configuration, and a new one starts from the defaults. Later ones win: defaults, the file, YS_* in
the environment (YS_TRAIN__SEED=7 sets train.seed), --set. `ys config show` lists every setting.
Ctrl-C finishes the step and saves; a second one stops at once, and the last checkpoint is good.
"""
RUN = """\
examples:
  ys run                                        prompt after prompt; `exit` leaves
  ys run mine --prompt "Once upon a time" --max-tokens 100 --seed 1
  ys run < letter.txt                           complete a text; its last line break is dropped
  ys run --json --logprobs 5 --max-tokens 0 --prompt "score this"
  ys run --prompts questions.txt --seed 1 > answers.jsonl

Text goes to stdout, timings to stderr. What is not given here is as in `generate` of the run's
configuration. The lines of --prompts are answered side by side, several times as fast as one by
one; with a seed, each as it is alone. What --weights loses, `ys eval --weights` tells.
"""
EVAL = """\
examples:
  ys eval default training_data
  ys eval runs/mine novel.txt letters --json
  ys eval default training_data --weights int8   what rounded weights lose
"""
DATA = """\
examples:
  ys gen-data --out my_data                     every kind that a program makes; no server needed
  ys gen-data --list                            all kinds of records, and who writes them
  ys gen-data --check --model llama3.1          is ollama there, has it the model, how fast is it
  ys gen-data --kind bedtime,trivia --dry-run   ten prompts, and nobody is asked
  ys gen-data --kind bedtime --count 200 --out my_data
  ys gen-data curate my_data --out clean        rules, duplicates; a report and a diff of every edit
  ys gen-data explain my_data "once upon a"     what the rules say of one record
  ys gen-data trace "once upon a"               where a sentence came from

A kind is one YAML file in configs/gen/kinds/. Each decided record is a line in the folder's journal
at once: stopped at any point, the same command goes on, and a finished plan does nothing.
"""
CONFIG = """\
examples:
  ys config show
  ys config show --config configs/quickstart.yaml --set train.seed=7
  ys config show > my.yaml                      what is shown is itself a configuration file
"""
DOCTOR = """\
examples:
  ys doctor
"""
