"""Explain every classification network of torchvision, and some of each family of timm, and compare with a reference.

Those of torchvision are loaded again from their own state dicts, too.

make sweep                                                     # all, most of an hour on two cores
PYTHONPATH=.:tests/support python tests/sweep/sweep.py vgg11 timm/levit_128s
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torchvision
from sweep_check import Row, check

from producer.jobs.model.errors import JobError
from worker.models.networks import load

TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224 convit_tiny
convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 davit_tiny deit3_small_patch16_224
deit_tiny_distilled_patch16_224 densenet121 dla34 dm_nfnet_f0 edgenext_xx_small efficientformer_l1 efficientnet_lite0
efficientvit_b0 eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 focalnet_tiny_srf ghostnet_050 gmlp_s16_224 hardcorenas_a
hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_v4 lcnet_050 levit_128s maxvit_nano_rw_256 mixer_s32_224
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mvitv2_tiny nasnetalarge
nest_tiny nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0 res2net50_14w_8s resmlp_12_224
resnest14d resnet18 rexnet_100 seresnext26d_32x4d swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
tf_efficientnet_lite0 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small vgg11 visformer_tiny
vit_relpos_medium_patch16_rpn_224 vit_small_patch32_224 vit_small_r26_s32_224 volo_d1_224 xception41
xcit_nano_12_p16_224
""".split()  # noqa: SIM905 - one a line would be a page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="these only")
    parser.add_argument("--timm", action="store_true", help="also networks of timm")
    arguments = parser.parse_args()
    networks = arguments.networks or torchvision.models.list_models(module=torchvision.models)
    networks += [f"timm/{name}" for name in TIMM] if arguments.timm else []
    print(
        f"{'network':40} {'layer':14} {'name':48} {'px':>4} {'map':>7} {'flat':>4} {'ReLUs':>5} {'differs':>8} {'s':>6}"
    )
    rows = [row for network in networks for row in _checked(network)]
    faulty = [row for row in rows if row.faults]
    ran = sum(not row.refused and not row.faults for row in rows)
    print(f"{ran} equal the reference, {sum(bool(row.refused) for row in rows)} refused, {len(faulty)} wrong")
    return bool(faulty)


def _checked(network: str) -> list[Row]:
    try:
        rows = check(network)
        if not network.startswith("timm/"):
            rows[0].faults += _reload(network)
    except Exception:  # one network that cannot be built must not hide the others
        rows = [Row(network, "", 0, faults=[traceback.format_exc().splitlines()[-1]])]
    for row in rows:
        print(_line(row), flush=True)
    return rows


def _reload(network: str) -> list[str]:
    """What is wrong with the network that is loaded from its own state dict, as `torch.save` wrote it."""
    model = torchvision.models.get_model(network, weights=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        torch.save(model.state_dict(), path)
        try:
            loaded = load(network, path, prepared=False).model.state_dict()
        except JobError as error:
            return [str(error)]
    own = model.state_dict()
    return [f"{name} is another" for name in loaded if not torch.equal(loaded[name], own[name])]


def _line(row: Row) -> str:
    start = f"{row.network:40} {row.layer:14} "
    if row.refused:
        return f"{start}refused: {row.refused}"
    side = "x".join(map(str, row.map))
    numbers = f"{row.size:4} {side:>7} {row.flat:4} {row.relus:5} {row.difference:8.0e} {row.seconds:6.1f}"
    return f"{start}{row.layer_name:48} {numbers} {'WRONG: ' if row.faults else ''}{'; '.join(row.faults)}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
