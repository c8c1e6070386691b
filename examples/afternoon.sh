#!/usr/bin/env bash
# A newcomer's afternoon: images and a network of their own, from a table of pictures to a file that ships.
#
#     examples/afternoon.sh FOLDER [KEY=VALUE …]
#
# All is done in FOLDER, which is made; the settings are for every training, e.g. train.epochs=2. Needs
# `pip install pyarrow onnxruntime` beside the pipeline, and six minutes of CPU time.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" && cp "$examples"/own/{network,images}.py "$1" && cd "$1" && shift

echo "== 1 pictures, as a data set of Hugging Face: a column of encoded images and one of names"
python - <<'PYTHON'
import io
from pathlib import Path

import pyarrow as pa
from images import shapes
from pyarrow import parquet

def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}

pairs = list(shapes(images=300))
pairs[0][0].save("picture.png")
print(f"picture.png, for the end, shows a {pairs[0][1]}")
Path("pictures").mkdir(exist_ok=True)
for split, some in (("train", pairs[60:]), ("validation", pairs[:60])):
    table = pa.table({"image": [encoded(i) for i, _ in some], "label": [name for _, name in some]})
    parquet.write_table(table, f"pictures/{split}-00000-of-00001.parquet", row_group_size=100)
PYTHON

mine=(data=parquet data.root=pictures data.image_size=24 model=custom model.target=network:small_resnet
      "model.args={width: 8}" train=digits train.batch_size=32 train.optimizer=adamw train.weight_decay=0.02)

echo "== 2 a first training; outputs/runs/first/prep/data.html shows the pictures"
python -m pipeline.launch name=first "stage.run=[prep,train,fuse]" "fuse.exports=[]" method=plain train.lr=0.003 \
    "${mine[@]}" "$@"

echo "== 3 three methods, two of which grow, from its weights and with smaller steps for the first layers"
tuned=("${mine[@]}" model.pretrained=first train.lr=0.001 train.layer_decay=0.8 "$@")
python -m pipeline.launch -m method=plain,dyrep,grow 'name=${method.name}' group=afternoon \
    "stage.run=[prep,train,fuse,eval]" "fuse.exports=[]" eval.exports=false "${tuned[@]}"

echo "== 4 which is better, is it real, what did it cost"
python -m pipeline.compare --group afternoon --html afternoon.html --json afternoon.json
best=$(python -c "import json; print(json.load(open('afternoon.json'))['groups'][0]['runs'][0])")

echo "== 5 ship $best: with the same settings it is not trained again"
python -m pipeline.launch name=shipped method="$best" "fuse.exports=[onnx]" "${tuned[@]}"
python "$examples/deploy.py" outputs/runs/shipped/fuse/model.onnx picture.png
