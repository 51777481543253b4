"""What `bench.golden` builds and runs: a line for each set and each command."""

# NAME SOURCES OPTIONS of each build; every source is below the directory of the corpora.
BUILDS = """
array array.json
array-16 array.json --block-tokens 16 --unit-bytes 1000
array-512 array.json --block-tokens 512 --unit-bytes 30000
array-tiny-units array.json --unit-bytes 333
pretty pretty.json --unit-bytes 1500
compact compact.json --unit-bytes 700
escaped escaped.json --unit-bytes 4000
spaced spaced.json --unit-bytes 900
array-bom bom.json --unit-bytes 5000
one-record one.json
lines lines.jsonl
lines-tiny-units lines.jsonl --unit-bytes 500
lines-crlf crlf.jsonl --unit-bytes 3000
lines-bom bom.jsonl --unit-bytes 3000
lines-blank blank.jsonl --unit-bytes 3000
lines-compact compact.jsonl
gz lines.jsonl.gz
gz-members members.jsonl.gz
zst lines.jsonl.zst
bz2 lines.jsonl.bz2
xz lines.jsonl.xz
array-gz array.json.gz
array-zst compact.json.zst
parquet lines.parquet
parquet-units lines.parquet --unit-bytes 2000
parquet-nested lines.parquet --text-field page.body
arrow lines.arrow
arrow-stream stream.arrow --unit-bytes 2000
save-to-disk saved
texts texts.json --unit-bytes 2000
texts-joined joined.json
strings strings.json
csv table.csv
text whole.txt
text-separated parts.txt --document-separator=---
text-packed parts.txt.gz --document-separator=---
directory mixed --unit-bytes 6000
pattern mixed/**/*.jsonl
several lines.jsonl array.json lines.parquet parts.txt --document-separator === --unit-bytes 8000
nested lines.jsonl --text-field page.body
dotted lines.jsonl --text-field a.b
template lines.jsonl --template {title}\\n{text}\\t{{{page.body}}}
special-text special.jsonl
special-parsed special.jsonl --special-tokens parse
forged forged.json --unit-bytes 400
forged-compact forged-compact.json --unit-bytes 150
best-fit array.json --packing best-fit
best-fit-16 lines.jsonl --packing best-fit --block-tokens 16 --unit-bytes 3000
best-fit-512 directory-of-one --packing best-fit --block-tokens 512
bad-array bad.json --on-bad-record skip --max-record-bytes 8000
bad-array-units bad.json --on-bad-record skip --max-record-bytes 8000 --unit-bytes 2500
bad-compact bad-compact.json --on-bad-record skip --max-record-bytes 8000 --unit-bytes 2500
bad-lines bad.jsonl --on-bad-record skip --max-record-bytes 8000
bad-lines-units bad.jsonl --on-bad-record skip --max-record-bytes 8000 --unit-bytes 2500
bad-lines-gz bad.jsonl.gz --on-bad-record skip --max-record-bytes 8000
bad-text bad.txt --document-separator=--- --on-bad-record skip
bad-parquet bad.parquet --on-bad-record skip
bad-template bad.jsonl --on-bad-record skip --template {title}-{text} --max-record-bytes 8000
dedup doubled.jsonl --dedup exact
dedup-units doubled.jsonl --dedup exact --unit-bytes 2000
dedup-sources doubled.jsonl array.json mixed --dedup exact --unit-bytes 5000
dedup-bad bad.jsonl lines.jsonl --dedup exact --on-bad-record skip --max-record-bytes 8000 --unit-bytes 3000
empty-texts empty.jsonl --unit-bytes 2000
long long.jsonl --unit-bytes 2000
no-val lines.jsonl --val-fraction 0
half-val lines.jsonl --val-fraction 0.5 --seed 7
seed lines.jsonl --seed 18446744073709551615
reference lines.jsonl --encoder tokenizers --check-tokenizer all
qwen2 lines.jsonl --tokenizer qwen2
"""

# Commands, most of which must fail. W is the directory with all that was made, O a new one for each command.
COMMANDS = """
pipeline
pipeline build
pipeline bild
pipeline build W/in/array.json
pipeline build W/in/nothing.json --out O/x
pipeline build W/in/aray.json --out O/x
pipeline build W/in/*.nothing --out O/x
pipeline build W/in/lines.jsonl W/in/lines.jsonl --out O/x
pipeline build W/in/lines.jsonl --out W/in/mixed --tokenizer W/tokenizer
pipeline build W/in/lines.jsonl --out W/in/array.json --tokenizer W/tokenizer
pipeline build W/in/lines.jsonl --out W/sets/array --tokenizer W/tokenizer
pipeline build W/in/array.json --out W/sets/array --tokenizer W/tokenizer --block-tokens 64
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/nothing
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/in/mixed
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/no-eos
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --text-field txt
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --text-field page.bdy
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --text-field ''
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --text-field page
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --template x
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --template {text:5}
pipeline build W/in/lines.jsonl --out O/x --tokenizer W/tokenizer --template {text
pipeline build W/in/lines.jsonl --out O/x --block-tokens 1
pipeline build W/in/lines.jsonl --out O/x --block-tokens 512.5
pipeline build W/in/lines.jsonl --out O/x --val-fraction 1
pipeline build W/in/lines.jsonl --out O/x --val-fraction nan
pipeline build W/in/lines.jsonl --out O/x --seed -1
pipeline build W/in/lines.jsonl --out O/x --packing bestfit
pipeline build W/in/lines.jsonl --out O/x --dedup fuzzy
pipeline build W/in/lines.jsonl --out O/x --on-bad-record ignore
pipeline build W/in/lines.jsonl --out O/x --special-tokens drop
pipeline build W/in/lines.jsonl --out O/x --max-record-bytes 0
pipeline build W/in/lines.jsonl --out O/x --max-record-bytes 5GiB
pipeline build W/in/lines.jsonl --out O/x --workers 0 --tokenizer W/tokenizer
pipeline build W/in/lines.jsonl --out O/x --engine cluster
pipeline build W/in/lines.jsonl --out O/x --encoder fast
pipeline build W/in/lines.jsonl --out O/x --check-tokenizer some
pipeline build W/in/lines.jsonl --out O/x --blok-tokens 5
pipeline build W/in/bad.json --out O/x --tokenizer W/tokenizer
pipeline build W/in/bad.jsonl --out O/x --tokenizer W/tokenizer
pipeline build W/in/bad.parquet --out O/x --tokenizer W/tokenizer
pipeline build W/in/only-empty.jsonl --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.json --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.jsonl --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.jsonl --out O/x --tokenizer W/tokenizer --on-bad-record skip
pipeline build W/damaged/truncated.jsonl.gz --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.jsonl.zst --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.jsonl.xz --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/truncated.parquet --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/two-arrays.json --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/no-comma.json --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/last-comma.json --out O/x --tokenizer W/tokenizer
pipeline build W/damaged/table --out O/x
pipeline build W/damaged/paper.pdf --out O/x
pipeline build W/damaged/utf-16.txt --out O/x
pipeline build W/damaged/empty.jsonl --out O/x
pipeline build W/damaged/white.jsonl --out O/x
pipeline build W/damaged/nothing-known --out O/x
pipeline build gopher://host/corpus.jsonl --out O/x
pipeline tokenizer W/in/lines.jsonl --vocab-size 100 --out O/x
pipeline tokenizer W/in/lines.jsonl --vocab-size 300 --out W/tokenizer
pipeline tokenizer W/in/lines.jsonl --vocab-size 300 --out O/x --text-field txt
pipeline fetch nothing
pipeline fetch wikipedia-zh --from nowhere
shards
shards info W/sets/array
shards info W/sets/array W/sets/lines
shards info W/sets/aray
shards info W/in/array.json
shards info W/in
shards verify W/sets/bad-lines-units
shards verify W/sets/best-fit-16
shards verify W/damaged/flipped
shards verify W/damaged/flipped --quick
shards verify W/damaged/flipped-index
shards verify W/damaged/short
shards info W/damaged/short
shards info W/damaged/no-manifest
shards info W/damaged/bad-json
shards info W/damaged/changed
shards info W/damaged/version
shards verify W/damaged/no-bin
shards verify W/damaged/no-tokenizer
shards cat W/sets/array --document 3
shards cat W/sets/array --block 999999
shards cat W/sets/array --document 999999
shards cat W/sets/array --split test
shards cat W/sets/array --block 1.5
shards report W/sets/array --out O/page.html
shards report W/sets/nothing --out O/page.html
shards merge W/sets/array W/sets/array-16 --out O/x
shards merge W/sets/array W/sets/qwen2 --out O/x
shards merge W/sets/array W/sets/lines --out W/sets/array
shards split W/sets/array --parts 0 --out O/x
shards split W/sets/array --fractions 0.5,0.6 --out O/x
shards split W/sets/array --fractions a,b --out O/x
shards subset W/sets/array --documents 0 --out O/x
shards subset W/sets/array --documents 999999 --out O/x
shards subset W/sets/array --fraction 2 --out O/x
shards subset W/sets/array --out O/x
shards export W/sets/array --to parket --out O/x
shards export W/sets/array --to parquet --out O/x
shards export W/sets/array --to datatrove --out O/x
shards export W/sets/array --to llm.c --out W/sets/lines
shards import W/in/array.json --from megatron --tokenizer W/tokenizer --out O/x
shards import W/sets/array --from olmo --tokenizer W/tokenizer --out O/x
shards import W/damaged/flipped-index --from megatron --tokenizer W/tokenizer --out O/x
shards pull W/nothing --out O/x
train
train --config W/nothing.yaml
train --config W/in/array.json
train --config W/config.yaml --shards W/sets/aray --check
train --config W/config.yaml --shards W/damaged/short --check
train --config W/config.yaml --shards W/sets/array:0.5,W/sets/array-16:0.5 --check
train --config W/config.yaml --shards W/sets/array:0.5,W/sets/qwen2:0.5 --check
train --config W/config.yaml --shards W/sets/array:0.5,W/sets/lines:2epochs --check
train --config W/config.yaml --shards W/sets/array:0.9999,W/sets/lines:0.0001 --check
train --config W/config.yaml --shards W/sets/array:0.7,W/sets/lines:0.3 --output_dir O/r --check
train --config W/config.yaml --learning_rte 1e-3 --check
train --config W/config.yaml --learning_rate fast --check
train --config W/config.yaml --model.hidden_size 15 --check
train --config W/config.yaml --model.hiden_size 16 --check
train --config W/config.yaml --model.max_position_embeddings 8 --check
train --config W/config.yaml --shuffle sometimes --check
train --config W/config.yaml --loss best --check
train --config W/config.yaml --global_batch_blocks 3 --check
train --config W/config.yaml --push_to_hub true --check
train --config W/config.yaml --optim moun --check
train --config W/config.yaml --resume_from_checkpoint W/nothing --check
train --config W/config.yaml --output_dir W/run --check
train --config W/config.yaml --output_dir W/in --check
train --config W/config.yaml --output_dir O/r --check
train.generate W/run --prompt 一 --max-new-tokens 4
train.generate W/run --prompt 一 --temperature -1
train.generate W/run --prompt 一 --num 0
train.generate W/run --prompt 一 --num 2 --temperature 0
train.generate W/run --checkpoint 77 --prompt 一
train.generate W/run --prompt-file W/nothing.txt
train.generate W/run --prompt 一 --interactive
train.generate W/nothing --prompt 一
train.generate W/in --prompt 一
train.evaluate W/run --blocks 2
train.evaluate W/run --split test
train.evaluate W/run --shards W/sets/qwen2
train.evaluate W/run --shards W/sets/no-val
train.evaluate W/run --batch 0
train.evaluate W/nothing
train.compare W/run
train.compare W/run W/nothing
train.compare W/in
train.sweep W/nothing.yaml
train.sweep W/sweep-both.yaml --dry-run
train.sweep W/sweep-key.yaml --dry-run
train.sweep W/sweep.yaml --dry-run
"""

# Sets made of sets, kept as the built ones are: NAME COMMAND.
DERIVED = """
merged shards merge W/sets/array W/sets/lines-tiny-units W/sets/dedup-units --out W/sets/merged
split shards split W/sets/lines-tiny-units --fractions 0.5,0.3,0.2 --out W/sets/split
subset shards subset W/sets/lines-tiny-units --documents 40 --out W/sets/subset
subset-random shards subset W/sets/lines-tiny-units --tokens 2000 --seed 5 --out W/sets/subset-random
subset-third shards subset W/sets/best-fit --fraction 1/3 --seed 1 --out W/sets/subset-third
imported shards import W/sets/lines --from megatron --tokenizer W/tokenizer --block-tokens 32 --out W/sets/imported
best shards import W/sets/array-16 --from megatron --tokenizer W/tokenizer --packing best-fit --out W/sets/imported-best
"""
