"""What other runtimes run: an integer function written as a file.

  program   the integer function as a straight line of operations
  tables    which function a lookup table is
  tflite    int8 .tflite, for LiteRT and for Arm's Vela compiler
  onnxfile  ONNX with integer operators, for ONNX Runtime
  witness   share of outputs equal to ours, per operation

A room of its own, above `integer`: the exporters read integer programs, while
`integer` itself reads the quantized tensors of `artifacts`. Writing and
running files needs the export extra.
"""
