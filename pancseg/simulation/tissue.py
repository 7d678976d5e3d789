"""Names the tissues that a simulated abdomen is made of."""

from enum import IntEnum


class Tissue(IntEnum):
    """What a voxel is; the truth label is ``PANCREAS`` and nothing else."""

    AIR = 0
    TABLE = 1
    TABLE_FOAM = 2
    SKIN = 3
    FAT = 4
    MUSCLE = 5
    CORTICAL_BONE = 6
    MARROW = 7
    DISC = 8
    SPINAL_CANAL = 9
    LUNG = 10
    HEART = 11
    LIVER = 12
    GALLBLADDER = 13
    SPLEEN = 14
    KIDNEY_CORTEX = 15
    KIDNEY_MEDULLA = 16
    KIDNEY_SINUS = 17
    STOMACH_WALL = 18
    STOMACH_FLUID = 19
    STOMACH_GAS = 20
    DUODENUM_WALL = 21
    DUODENUM_FLUID = 22
    BOWEL_WALL = 23
    BOWEL_FLUID = 24
    BOWEL_GAS = 25
    COLON_STOOL = 26
    AORTA = 27
    ARTERY = 28
    VENA_CAVA = 29
    SPLENIC_VEIN = 30
    PORTAL_VEIN = 31
    LIVER_VEIN = 32
    PANCREAS = 33
