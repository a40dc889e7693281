"""Keep residual additions in float32 when OpenVINO runs a graph in bfloat16.

The blocks of a transformer add to one residual stream. Rounding it to bfloat16 after each block loses more accuracy
than the matrix products do. OpenVINO marks operations that must keep their precision with the attribute "precise".
Python has no call to set it, so the mark is copied from a small model file.
"""

from __future__ import annotations

import openvino

_MARKED = b"""<net name="sum" version="11">
<layers>
<layer id="0" name="left" type="Parameter" version="opset1">
<data shape="..." element_type="f32"/><output><port id="0" precision="FP32"/></output></layer>
<layer id="1" name="right" type="Parameter" version="opset1">
<data shape="..." element_type="f32"/><output><port id="0" precision="FP32"/></output></layer>
<layer id="2" name="sum" type="Add" version="opset1">
<data auto_broadcast="numpy"/><rt_info><attribute name="precise" version="0"/></rt_info>
<input><port id="0"/><port id="1"/></input><output><port id="2" precision="FP32"/></output></layer>
<layer id="3" name="result" type="Result" version="opset1"><input><port id="0"/></input></layer>
</layers>
<edges>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="2" to-layer="3" to-port="0"/>
</edges>
</net>"""


def keep_sums(core: openvino.Core, model: openvino.Model) -> None:
    """Mark all float32 additions of two computed tensors in a model, in place, so they run in float32."""
    for operation in model.get_ordered_ops():
        if _is_sum(operation):
            marked = next(found for found in core.read_model(_MARKED, b"").get_ops() if found.get_type_name() == "Add")
            for port, source in zip(marked.inputs(), operation.input_values(), strict=True):
                port.replace_source_output(source)
            marked.set_friendly_name(operation.get_friendly_name())
            operation.output(0).replace(marked.output(0))
    model.validate_nodes_and_infer_types()


def _is_sum(operation: openvino.Node) -> bool:
    return (
        operation.get_type_name() == "Add"
        and operation.get_output_element_type(0) == openvino.Type.f32
        and all(source.get_node().get_type_name() != "Constant" for source in operation.input_values())
    )
